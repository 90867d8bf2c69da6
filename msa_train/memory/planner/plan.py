"""Where every byte of a served memory goes, whether it fits, and the least time of a query.

Pure arithmetic (SPEC section 5); nothing is allocated. `msa plan memory` prints it, and the engine
checks it at start with the real bank and the real machine (memory/planner/machine.py).

L router layers, C chunks, n documents, V = kv_heads x head_dim values of a key.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from msa_train.errors import ConfigError
from msa_train.memory.planner.plan_given import BankSize, Machine, Serving
from msa_train.model.config import ModelConfig

Place = Literal["device", "host", "disk"]
KEY_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "fp8": 1}
PROCESS = 600 * 10**6  # of a serving process beside its model (measured on a CPU: 0.5 GB)
RESERVE = 2 * 10**9  # a GPU's context, libraries' workspaces, activations (unmeasured)
# Bytes per context and document while a layer is searched: scores, bounds, a mask; maxima on a GPU.
_SEARCH_BYTES, _PACKED_BYTES = 4 + 8 + 1, 8
_DOCUMENT_BYTES = 64  # numbers, token and chunk counts, offsets, of a document in a process
_BOUND_BYTES = 8  # chunk_cu, for every layer


@dataclass(frozen=True)
class Item:
    """Bytes in one place: on each device, or in all of host memory or disk. per_layer: of them, in
    one router layer (0: not divided by layers). needed: false for mapped files, which give way."""

    what: str
    place: Place
    bytes: int
    per_layer: int = 0
    needed: bool = True


@dataclass(frozen=True)
class SearchFloor:
    """No query takes less: `bytes` of keys each device reads, `flops` it multiplies; limit says
    which of them decides."""

    bytes: int
    flops: int
    ms: float
    limit: Literal["memory", "arithmetic"]


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

    def have(self, place: Place) -> int | None:
        """None: unknown (disk), or no such place."""
        if place == "device":
            return min((card.bytes for card in self.machine.cards), default=None)
        return self.machine.host if place == "host" else None

    @property
    def lacking(self) -> tuple[Place, ...]:
        """Places that do not hold what they must."""
        places: tuple[Place, ...] = ("device", "host")
        return tuple(p for p in places if (self.have(p) or 0) < self.need(p))

    @property
    def fits(self) -> bool:
        return not self.lacking

    @property
    def notes(self) -> list[str]:
        """What fits and will be slow."""
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
        from msa_train.memory.planner.plan_advice import would_fit

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
        from msa_train.memory.planner.plan_advice import would_fit

        places: tuple[Place, ...] = ("device", "host", "disk")
        return {
            "bank": asdict(self.bank),
            "devices": [card.name for card in self.machine.cards],
            "serving": asdict(self.serving),
            "items": [asdict(item) for item in self.items],
            "need": {place: self.need(place) for place in places},
            "have": {place: self.have(place) for place in places},
            "fits": self.fits,
            "would_fit": None if self.fits else would_fit(self),
            "notes": self.notes,
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
    width = config.kv_heads * config.head_dim
    if KEY_BYTES[keys] > 1:
        return chunks * width * KEY_BYTES[keys]
    return chunks * (width + 4 * config.kv_heads + 8) + 4 * documents


def _computing(
    config: ModelConfig, bank: BankSize, machine: Machine, serving: Serving
) -> Iterator[Item]:
    """What lies where the model computes: on each card, or in host memory."""
    ranks, place = max(1, len(machine.cards)), "device" if machine.cards else "host"
    layers, top_k = len(config.router_layers), config.router.top_k
    chunks, documents = (math.ceil(x / ranks) for x in (bank.chunks, bank.documents))
    stored, compute = KEY_BYTES[bank.dtype], KEY_BYTES[serving.compute]
    row = config.kv_heads * config.head_dim
    mapped = serving.keys == "stored" and not machine.cards
    form = bank.dtype if serving.keys == "stored" else serving.keys
    keys = key_bytes(config, chunks, documents, form)
    name = f"router keys, {form}" + (", mapped from disk" if mapped else "")
    yield Item(name, place, layers * keys, keys, needed=not mapped)
    bounds = _BOUND_BYTES * (documents + 1)
    yield Item("chunk bounds of documents", place, bounds * (layers if machine.cards else 1))
    yield Item(f"weights, {serving.compute}", place, parameters(config) * compute)
    tokens = serving.slots * serving.slot_tokens
    yield Item(
        f"K/V slots, {serving.slots} of {serving.slot_tokens:,} tokens",
        place, tokens * config.layers * 2 * row * compute,
    )  # fmt: skip
    # A slot keeps the chunks that it reads in every router layer while it decodes.
    each = bank.chunks / max(1, bank.documents)
    winners = serving.slots * min(top_k, bank.documents) * each * row
    yield Item("chunks read by the slots", place, math.ceil(winners * 2 * layers * compute))
    yield Item("hot documents", place, round(serving.hot_mb * (1 << 20)))
    yield Item("prefetch, one layer of all slots", place, math.ceil(winners * 3 * stored))
    scores = _SEARCH_BYTES + (_PACKED_BYTES if machine.cards else 0)
    yield Item("scores while searching", place, serving.slots * documents * scores)
    if machine.cards:
        yield Item("reserve: context, workspaces, activations", place, RESERVE)


def _stored(
    config: ModelConfig, bank: BankSize, machine: Machine, serving: Serving
) -> Iterator[Item]:
    """What lies in host memory beside, and on the disk."""
    ranks, layers = max(1, len(machine.cards)), len(config.router_layers)
    row = config.kv_heads * config.head_dim * KEY_BYTES[bank.dtype]
    per_layer = bank.chunks * row
    yield Item("processes", "host", ranks * PROCESS)
    yield Item("document tables", "host", ranks * bank.documents * _DOCUMENT_BYTES)
    if serving.states == "host":
        pinned = ", pinned" if machine.cards else ""
        yield Item(f"pooled K and V{pinned}", "host", 2 * layers * per_layer, 2 * per_layer)
    yield Item(f"bank: router keys, {bank.dtype}", "disk", layers * per_layer, per_layer)
    yield Item(f"bank: pooled K and V, {bank.dtype}", "disk", 2 * layers * per_layer, 2 * per_layer)
    checks = bank.documents * (4 * layers + 16)
    yield Item("bank: checksums and ids (texts not counted)", "disk", checks)


def _floor(
    config: ModelConfig, bank: BankSize, machine: Machine, serving: Serving
) -> SearchFloor | None:
    """Every key is read once and multiplied with T query vectors."""
    ranks = max(1, len(machine.cards))
    bandwidth = min((card.bandwidth for card in machine.cards), default=machine.host_bandwidth)
    peak = min((card.flops for card in machine.cards), default=0.0)
    if not bandwidth:
        return None
    layers, width = len(config.router_layers), config.kv_heads * config.head_dim
    chunks = math.ceil(bank.chunks / ranks)
    form = bank.dtype if serving.keys == "stored" else serving.keys
    scales = 4 * config.kv_heads if KEY_BYTES[form] == 1 else 0
    size = layers * chunks * (width * KEY_BYTES[form] + scales)
    flops = 2 * serving.question_tokens * layers * chunks * width
    read, product = size / bandwidth, flops / peak if peak else 0.0
    limit = "memory" if read >= product else "arithmetic"
    return SearchFloor(size, flops, max(read, product) * 1e3, limit)


@functools.cache
def parameters(config: ModelConfig) -> int:
    """Weights of a model, counted from their shapes."""
    from msa_train.model.weights import weight_shapes

    return sum(math.prod(shape) for shape in weight_shapes(config).values())


def gb(size: float) -> str:
    """Bytes as a person reads them, in powers of ten."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.{1 if size >= 100 * factor else 2}f} {unit}"
    return f"{size:,.0f} B"


def with_serving(found: Plan, **changes: Any) -> Plan:
    """The same plan with other settings."""
    return plan(found.config, found.bank, found.machine, replace(found.serving, **changes))
