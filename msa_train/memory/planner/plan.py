"""Where every byte of a served memory goes, whether it fits, and the least time of a query.

Pure arithmetic (SPEC section 5); nothing is allocated. `msa plan memory` prints it, and `msa serve`
checks it at its start with the real bank and the real machine (hardware.py).

L router layers, C chunks, n documents, V values of a router key; K and V of reading layers only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from data_pipeline.errors import check_least
from msa_train.errors import ConfigError
from msa_train.hardware import RESERVE, Machine, gb
from msa_train.memory.search.settings import TierSettings, flag
from msa_train.model.config import ModelConfig

if TYPE_CHECKING:
    from msa_train.memory.bank.manifest import BankManifest

Place = Literal["device", "host", "disk"]
KEY_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "fp8": 1}
PROCESS = 600 * 10**6  # of a serving process beside its model (measured on a CPU: 0.5 GB)
# Bytes per context and document while a layer is searched: scores, bounds, a mask; maxima on a GPU.
_SEARCH_BYTES, _PACKED_BYTES = 4 + 8 + 1, 8
_DOCUMENT_BYTES = 64  # of a document in a process: numbers, token and chunk counts, offsets
_BOUND_BYTES = 8  # chunk_cu of a document
# On a GPU, once for all layers: the same, its first and last chunk, a mask (DocumentRows).
_TABLE_BYTES = 8 + 16 + 1
_EXACT_BYTES = 256 << 20  # that exact scores are computed with there
# Bytes per logit while tokens are drawn from them: five columns of float64 (sampling.py).
_DRAWING_BYTES = 5 * 8
_DIGEST = 1.2e9  # bytes a second that a thread compares with a checksum (SHA-256, on a Xeon core)
_MOST_CARDS = 64  # that would_fit tries
STORED = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class BankSize:
    """documents, chunks, tokens in all; dtype of the stored states."""

    documents: int
    chunks: int
    tokens: int
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in STORED:
            raise ConfigError(f"dtype is {self.dtype!r}: give {', '.join(STORED)}")
        if not 0 <= self.documents <= self.chunks <= self.tokens:
            raise ConfigError(
                f"a memory of {self.tokens:,} tokens, {self.chunks:,} chunks and "
                f"{self.documents:,} documents: every document has a chunk, every chunk a token"
            )

    @classmethod
    def of_manifests(cls, manifests: Sequence[BankManifest]) -> BankSize:
        """What banks of one dtype hold, including removed documents."""
        counts = (
            sum(each.total(name) for each in manifests)
            for name in ("documents", "chunks", "tokens")
        )
        return cls(*counts, manifests[0].form.dtype)

    @classmethod
    def of_tokens(
        cls,
        tokens: int,
        chunk_size: int,
        document_tokens: int | None = None,
        chunks_per_1k: float | None = None,
        dtype: str = "bfloat16",
    ) -> BankSize:
        """document_tokens: of every document (None: one full chunk each). chunks_per_1k: chunks in
        1,000 tokens, where lengths vary and last chunks are short (`msa memory info` of a similar
        bank gives both counts)."""
        length = chunk_size if document_tokens is None else document_tokens
        if length < 1:
            raise ConfigError(f"document-tokens is {length}: give 1 or more")
        documents = math.ceil(tokens / length)
        chunks = math.ceil(tokens / length * math.ceil(length / chunk_size))
        if chunks_per_1k is not None:
            if not 1000 / chunk_size <= chunks_per_1k <= 1000:
                raise ConfigError(
                    f"chunks-per-1k is {chunks_per_1k}: chunks of up to {chunk_size} tokens are "
                    f"{1000 / chunk_size:.4g} (all full) to 1000 of 1,000 tokens"
                )
            chunks = math.ceil(tokens * chunks_per_1k / 1000)
            documents = min(documents, chunks)
        return cls(documents, chunks, tokens, dtype)


@dataclass(frozen=True, kw_only=True)
class Serving(TierSettings):
    """How a memory is served: its tiers, and the model beside it. slots: rows of the KV cache;
    question_tokens: T of the floor; prefill_tokens: that a step may prefill; compute: dtype of
    weights and KV cache. The metadata are the flags of `msa plan memory`."""

    slots: int = flag(32, "contexts that decode at once", metavar=None)
    slot_tokens: int = flag(4096, "length of each", metavar=None)
    question_tokens: int = flag(32, "T of the floor", metavar=None)
    prefill_tokens: int = 8192
    compute: str = "bfloat16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compute not in STORED:
            raise ConfigError(f"compute is {self.compute!r}: give {', '.join(STORED)}")
        counts = "slots", "slot_tokens", "question_tokens", "prefill_tokens"
        check_least(1, self, "", *counts, error=ConfigError)

    def to_json(self) -> dict[str, Any]:
        """Without `prefetch`, which takes no bytes of its own."""
        return {name: value for name, value in asdict(self).items() if name != "prefetch"}


@dataclass(frozen=True)
class Item:
    """Bytes in one place: on each device, or in all of host memory or disk. per_layer: those of one
    router layer (0: not per layer). needed: false for mapped files, which can be evicted. held:
    "model" for weights and KV cache, "memory" for keys, which are there from the start and stay;
    None for what comes and goes."""

    what: str
    place: Place
    bytes: int
    per_layer: int = 0
    needed: bool = True
    held: Literal["model", "memory"] | None = None


@dataclass(frozen=True)
class SearchFloor:
    """The least time of a query: each device reads `bytes` of keys and computes `flops`; limit says
    which of the two takes longer."""

    bytes: int
    flops: int
    ms: float
    limit: Literal["memory", "arithmetic"]


@dataclass(frozen=True)
class Start:
    """What a server reads before it answers: bytes of router keys, compared with their checksums in
    so many seconds of one core; all threads of all ranks divide them."""

    bytes: int
    core_seconds: float


@dataclass(frozen=True)
class Plan:
    config: ModelConfig
    bank: BankSize
    machine: Machine
    serving: Serving
    items: tuple[Item, ...]
    floor: SearchFloor | None  # None: the bandwidth is unknown

    def need(self, place: Place) -> int:
        """Bytes that must be there: on each device, or in all of the host's memory."""
        return sum(item.bytes for item in self.items if item.place == place and item.needed)

    def held(self, *kinds: str) -> int:
        """Bytes that are taken where the model computes when the server has started."""
        return sum(item.bytes for item in self.items if item.held in kinds and item.needed)

    def have(self, place: Place) -> int | None:
        """None: unknown (disk), or no such place."""
        if place == "device":
            return min((card.bytes for card in self.machine.cards), default=None)
        return self.machine.host if place == "host" else None

    @property
    def start(self) -> Start:
        keys = _stored_keys(self.config, self.bank)
        return Start(keys, keys / _DIGEST)

    @property
    def lacking(self) -> tuple[Place, ...]:
        """Places that are too small for what they must hold."""
        places: tuple[Place, ...] = ("device", "host")
        return tuple(p for p in places if (self.have(p) or 0) < self.need(p))

    @property
    def fits(self) -> bool:
        return not self.lacking

    @property
    def notes(self) -> list[str]:
        """What fits but will be slow."""
        mapped = sum(i.bytes for i in self.items if i.place == "host" and not i.needed)
        room = self.machine.host - self.need("host")
        if self.machine.cards or mapped <= room:
            return []
        return [
            f"the router keys ({gb(mapped)}) do not stay in the memory that is left "
            f"({gb(max(0, room))}): every query reads the disk"
        ]

    def check(self) -> None:
        """Raises ConfigError with what is needed, what there is, and what would fit."""
        if self.fits:
            return
        problems = [
            f"{_NAMES[p]} must hold {gb(self.need(p))} and has {gb(self.have(p) or 0)} "
            f"({', '.join(f'{i.what} {gb(i.bytes)}' for i in self._largest(p))})"
            for p in self.lacking
        ]
        raise ConfigError(
            f"a memory of {self.bank.chunks:,} chunks does not fit: {'; '.join(problems)}. "
            f"{would_fit(self) or 'No setting would fit: take a smaller memory'}"
        )

    def to_json(self) -> dict[str, Any]:
        places: tuple[Place, ...] = ("device", "host", "disk")
        return {
            "bank": asdict(self.bank),
            "devices": [card.name for card in self.machine.cards],
            "serving": self.serving.to_json(),
            "items": [asdict(item) for item in self.items],
            "need": {place: self.need(place) for place in places},
            "have": {place: self.have(place) for place in places},
            "fits": self.fits,
            "would_fit": None if self.fits else would_fit(self),
            "notes": self.notes,
            "start": asdict(self.start),
            "floor": asdict(self.floor) if self.floor else None,
        }

    def _largest(self, place: Place) -> list[Item]:
        found = [i for i in self.items if i.place == place and i.needed]
        return sorted(found, key=lambda i: -i.bytes)[:3]


_NAMES: dict[Place, str] = {"device": "each GPU", "host": "host memory", "disk": "the disk"}


def plan(config: ModelConfig, bank: BankSize, machine: Machine, serving: Serving) -> Plan:
    """Raises ConfigError for 8-bit keys where a score is no single dot product."""
    if serving.keys in ("int8", "fp8") and not config.router.scoring.certifiable:
        raise ConfigError(
            f"keys is {serving.keys}: this router's score is no single dot product; use bfloat16"
        )
    items = (*_computing(config, bank, machine, serving), *_stored(config, bank, machine, serving))
    return Plan(config, bank, machine, serving, items, _floor(config, bank, machine, serving))


def key_bytes(config: ModelConfig, chunks: int, documents: int, keys: str) -> int:
    """Bytes of one layer's router keys as they are searched; 8-bit ones with their scales (float32
    per chunk and head), error and length (per chunk), and the worst error (per document)."""
    width = config.sizes["router_keys"]
    if KEY_BYTES[keys] > 1:
        return chunks * width * KEY_BYTES[keys]
    return chunks * (width + 4 * config.router_key_heads + 8) + 4 * documents


def _computing(
    config: ModelConfig, bank: BankSize, machine: Machine, serving: Serving
) -> Iterator[Item]:
    """What lies where the model computes: on each card, or in host memory."""
    ranks, place = max(1, len(machine.cards)), "device" if machine.cards else "host"
    layers, reading = len(config.router_layers), len(config.reading_layers)
    chunks, documents = (math.ceil(x / ranks) for x in (bank.chunks, bank.documents))
    stored, compute = KEY_BYTES[bank.dtype], KEY_BYTES[serving.compute]
    row = config.kv_heads * config.head_dim
    mapped = serving.keys == "stored" and not machine.cards
    form = bank.dtype if serving.keys == "stored" else serving.keys
    keys = key_bytes(config, chunks, documents, form)
    name = f"router keys, {form}" + (", mapped from disk" if mapped else "")
    yield Item(name, place, layers * keys, keys, needed=not mapped, held="memory")
    bounds = _bounds(config, documents, bool(machine.cards))
    yield Item("chunk bounds of documents", place, bounds, held="memory")
    weights = parameters(config) * compute
    yield Item(f"weights, {serving.compute}", place, weights, held="model")
    yield from _slots(config, bank, place, serving)
    winners = serving.slots * chunks_read(config, bank) * row
    hot = round(serving.hot_mb * (1 << 20))  # a GPU takes it whole with the first question
    yield Item("hot documents", place, hot, held="memory" if machine.cards else None)
    yield Item("prefetch, one layer of all slots", place, winners * 3 * stored)
    scores = _SEARCH_BYTES + (_PACKED_BYTES if machine.cards else 0)
    exact = _EXACT_BYTES if machine.cards else 0
    yield Item("scores while searching", place, serving.slots * documents * scores + exact)
    tokens = max(serving.prefill_tokens, serving.slot_tokens)
    held = tokens * config.layers * 2 * row * compute + winners * 2 * reading * stored
    yield Item(f"K/V of a prefill, {tokens:,} tokens, and chunks it reads", place, held)
    yield Item("activations of a prefill", place, tokens * activations(config) * compute)
    drawing = (serving.slots if machine.cards else 1) * _DRAWING_BYTES
    logits = config.vocab_size * (serving.slots * compute + drawing)
    yield Item("logits, and drawing from them", place, logits)
    if machine.cards:
        yield Item("decode graphs, one pool", place, _graph_pool(config, bank, serving))
        yield Item("reserve: context, workspaces, graphs' launches", place, RESERVE)


def _bounds(config: ModelConfig, documents: int, on_gpu: bool) -> int:
    """Bytes that say which chunks are a document's. A GPU has them once for all layers, but for a
    scoring that is no single dot product."""
    each = _TABLE_BYTES if on_gpu else _BOUND_BYTES
    if on_gpu and not config.router.scoring.certifiable:
        each += _BOUND_BYTES * len(config.router_layers)
    return each * (documents + 1)


def chunks_read(config: ModelConfig, bank: BankSize) -> int:
    """Chunks that a context reads in a layer, of documents as long as the average."""
    each = bank.chunks / max(1, bank.documents)
    return math.ceil(min(config.router.top_k, bank.documents) * each)


def activations(config: ModelConfig) -> int:
    """Numbers per token while a layer is computed: the states that go in and their norm, beside
    projections, plain and rotated, and what attention adds, or beside those of the MLP."""
    d, wide, narrow = (config.sizes[name] for name in ("hidden", "queries", "keys"))
    return 2 * d + max(3 * config.ffn, 3 * wide + 3 * narrow)


def _slots(config: ModelConfig, bank: BankSize, place: Place, serving: Serving) -> Iterator[Item]:
    """The KV cache, as it is allocated."""
    from msa_train.model.kv_cache import cache_bytes, room_for

    chunks, size = chunks_read(config, bank), KEY_BYTES[serving.compute]
    held = cache_bytes(config, serving.slots, serving.slot_tokens, chunks, size)
    tokens = f"K/V slots, {serving.slots} of {serving.slot_tokens:,} tokens"
    yield Item(tokens, place, held["tokens"], held="model")
    read = f"chunks read by the slots, room for {room_for(chunks):,} each"
    yield Item(read, place, held["chunks"], held="model")
    yield Item("masks of the slots", place, held["masks"], held="model")


def _graph_pool(config: ModelConfig, bank: BankSize, serving: Serving) -> int:
    """What one step of all slots computes with, attention's logits in float32 among it."""
    from msa_train.model.kv_cache import room_for

    columns = room_for(chunks_read(config, bank)) + serving.slot_tokens
    row = activations(config) * KEY_BYTES[serving.compute] + config.heads * columns * 4
    return serving.slots * row


def _stored(
    config: ModelConfig, bank: BankSize, machine: Machine, serving: Serving
) -> Iterator[Item]:
    """What lies in host memory beside, and on the disk."""
    ranks, reading = max(1, len(machine.cards)), len(config.reading_layers)
    layers, keys = len(config.router_layers), _stored_keys(config, bank)
    states = 2 * config.sizes["keys"] * bank.chunks * KEY_BYTES[bank.dtype]
    yield Item("processes", "host", ranks * PROCESS)
    yield Item("document tables", "host", ranks * bank.documents * _DOCUMENT_BYTES)
    if serving.states == "host":
        yield Item("pooled K and V", "host", reading * states, states)
    yield Item(f"bank: router keys, {bank.dtype}", "disk", keys, keys // layers)
    yield Item(f"bank: pooled K and V, {bank.dtype}", "disk", reading * states, states)
    checks = bank.documents * (4 * layers + 16)
    yield Item("bank: checksums and ids (texts not counted)", "disk", checks)


def _stored_keys(config: ModelConfig, bank: BankSize) -> int:
    """Bytes of the router keys of all layers in a bank."""
    width = len(config.router_layers) * config.sizes["router_keys"]
    return width * bank.chunks * KEY_BYTES[bank.dtype]


def _floor(
    config: ModelConfig, bank: BankSize, machine: Machine, serving: Serving
) -> SearchFloor | None:
    """Every key is read once and multiplied with T query vectors."""
    ranks = max(1, len(machine.cards))
    bandwidth = min((card.bandwidth for card in machine.cards), default=machine.host_bandwidth)
    peak = min((card.flops for card in machine.cards), default=0.0)
    if not bandwidth:
        return None
    layers, width = len(config.router_layers), config.sizes["router_keys"]
    chunks = math.ceil(bank.chunks / ranks)
    form = bank.dtype if serving.keys == "stored" else serving.keys
    scales = 4 * config.router_key_heads if KEY_BYTES[form] == 1 else 0
    size = layers * chunks * (width * KEY_BYTES[form] + scales)
    queries = 1 if config.router.query_reduce == "pooled" else serving.question_tokens
    flops = 2 * queries * layers * chunks * width
    read, product = size / bandwidth, flops / peak if peak else 0.0
    limit = "memory" if read >= product else "arithmetic"
    return SearchFloor(size, flops, max(read, product) * 1e3, limit)


@functools.cache
def parameters(config: ModelConfig) -> int:
    """Weights of a model, counted from their shapes."""
    from msa_train.model.weights import weight_shapes

    return sum(math.prod(shape) for shape in weight_shapes(config).values())


def would_fit(found: Plan) -> str | None:
    """Other settings that a memory which does not fit would fit with, as a sentence: the least
    change of each kind, and how many cards of the same kind."""
    smaller = _first(found, _smaller(found))
    few_slots = smaller is None or "slots" in smaller
    narrower = _first(found, _narrower(found)) if few_slots else None
    ways = [way for way in (smaller, narrower, _cards(found)) if way]
    return f"What would fit: {', or '.join(ways)}" if ways else None


def _first(found: Plan, candidates: Iterator[dict[str, Any]]) -> str | None:
    for changes in candidates:
        if _fits(found, found.machine, changes):
            return _flags(changes)
    return None


def _fits(found: Plan, machine: Machine, changes: dict[str, Any]) -> bool:
    return plan(found.config, found.bank, machine, replace(found.serving, **changes)).fits


def _flags(changes: dict[str, Any]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in changes.items())


def _smaller(found: Plan) -> Iterator[dict[str, Any]]:
    """Changes other than of the keys: K and V left on disk, no hot documents, fewer slots."""
    serving = found.serving
    mapped = [{}] if serving.states == "mapped" else [{}, {"states": "mapped"}]
    cold = [{}, {"hot_mb": 0}] if serving.hot_mb else [{}]
    fewer = [serving.slots >> shift for shift in range(1, serving.slots.bit_length())]
    for slots in ({}, *({"slots": count} for count in fewer)):
        for hot in cold:
            for states in mapped:
                yield {**states, **hot, **slots}


def _narrower(found: Plan) -> Iterator[dict[str, Any]]:
    """Keys that take less than those now searched, with the least other changes first."""
    for keys in _forms(found):
        for others in _smaller(found):
            yield {"keys": keys, **others}


def _forms(found: Plan) -> list[str]:
    serving, mapped = found.serving, not found.machine.cards
    now = found.bank.dtype if serving.keys == "stored" else serving.keys
    forms = ["bfloat16"]
    if found.config.router.scoring.certifiable and KEY_BYTES[now] > 1:
        forms.append("int8")
    forms = [form for form in forms if KEY_BYTES[form] < KEY_BYTES[now]]
    # On a CPU the bank's own keys are mapped, and give way.
    return ["stored"] if mapped and serving.keys != "stored" else forms


def _cards(found: Plan) -> str | None:
    cards = found.machine.cards
    if not cards or "device" not in found.lacking:
        return None
    for changes in _smaller(found):
        for count in range(len(cards) + 1, _MOST_CARDS + 1):
            if _fits(found, replace(found.machine, cards=(cards[0],) * count), changes):
                settings = _flags(changes) or "the settings as they are"
                return f"{count} of {cards[0].name} with {settings}"
    return None
