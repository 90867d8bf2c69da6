"""Part `memory`: a memory of 100M tokens on one card, from a question to the tokens of its answer.

Every document is one chunk. Router keys are random unit heads, drawn on the device, another tensor
for each layer; pooled K and V are random, in host memory, one layer's for all layers: what
a fetch takes does not depend on the numbers. Rows of many segments share one layer's keys. Nothing
is kept on the card between two questions, nor fetched ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise
from random import sample
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msa_train.bench.floor import Floor
from msa_train.bench.gpu.models import random_decoder
from msa_train.bench.gpu.results import Measured, Row, measured
from msa_train.bench.gpu.sizes import BatterySizes
from msa_train.bench.kernels.cases import device, draw, every, unit_heads
from msa_train.bench.runner import in_turns
from msa_train.errors import BankError
from msa_train.memory.bank.state_checks import StateChecks, raw_bytes, rows_crc
from msa_train.memory.engine.model_runner import ModelRunner
from msa_train.memory.planner.plan import key_bytes
from msa_train.memory.search.device_cache import DeviceDocuments, gather
from msa_train.memory.search.key_table import KeyTable, PlacedKeys
from msa_train.memory.search.keys import LayerKeys
from msa_train.memory.search.searcher import LocalSearcher, Part
from msa_train.memory.search.settings import KeyForm
from msa_train.memory.search.view import MemoryView
from msa_train.model.attention import Pooled
from msa_train.model.batch import context_positions
from msa_train.model.kv_cache import Prefill
from msa_train.model.transfer import pinned

_DRAWN = 1 << 17  # documents' K and V that are drawn: the others have the same
HEAD, TAIL = 4, 8  # tokens of a context before and after its question
_KEYS = ("router keys on the card, beside the planner's", "GB")


def planned(sizes: BatterySizes) -> list[tuple[str, str]]:
    found = [_KEYS]
    for m in sizes.questions:
        found += [(f"{what}, {_asked(m)}", unit) for what, unit in _STEPS]
    for form in _FORMS:
        found += [(_segmented(form, s, m), "ms") for s in sizes.segments for m in sizes.questions]
    return [*found, *((_first_of(sizes, m), "ms") for m in sizes.questions)]


def rows(sizes: BatterySizes) -> Iterator[Row]:
    """What a question costs with the whole memory in one segment, then in many."""
    torch.manual_seed(0)
    Floor.of(torch.bfloat16)  # while there is room for it
    bed = _Bed(sizes)
    yield measured(*_KEYS, bed.keys_gb)
    for m in sizes.questions:
        steps: Sequence[Callable[[int], Measured]] = (
            bed.added, bed.first_token, bed.search, bed.all_layers, bed.fetch, bed.decode,
        )  # fmt: skip
        for (what, unit), step in zip(_STEPS, steps, strict=True):
            yield measured(f"{what}, {_asked(m)}", unit, lambda step=step, m=m: step(m))
    bed.share_keys()
    for form in _FORMS:
        for s in sizes.segments:
            view = None
            for m in sizes.questions:
                if view is None:
                    view = _made(lambda s=s, form=form: bed.view_of(s, form))
                yield measured(
                    _segmented(form, s, m), "ms", lambda v=view, m=m: bed.one_layer(v(), m)
                )
    view = _made(lambda: bed.view_of(max(sizes.segments)))
    for m in sizes.questions:
        yield measured(_first_of(sizes, m), "ms", lambda m=m: bed.first_token(m, view()))


_STEPS = (
    ("added to the first token by the memory", "ms"),
    ("first token", "ms"),
    ("search of one layer", "ms"),
    ("search and fetch, all layers", "ms"),
    ("fetch of the winners' K and V, all layers", "ms"),
    ("decoding", "tokens/s"),
)
_FORMS: tuple[KeyForm, ...] = ("stored", "int8")


def _asked(questions: int) -> str:
    return f"{questions} question{'s' if questions > 1 else ''}"


def _segmented(form: str, segments: int, questions: int) -> str:
    keys = "bfloat16" if form == "stored" else form
    return f"search of one layer, {keys} keys in {segments} segments, {_asked(questions)}"


def _first_of(sizes: BatterySizes, questions: int) -> str:
    return f"first token, {max(sizes.segments)} segments, {_asked(questions)}"


def _made(make: Callable[[], MemoryView]) -> Callable[[], MemoryView]:
    """Makes it when it is first needed, within a row that can fail, and once."""
    held: list[MemoryView] = []

    def get() -> MemoryView:
        if not held:
            held.append(make())
        return held[0]

    return get


def _the(keys: Tensor) -> Tensor:
    return keys


class _Segment:
    """Documents of one chunk whose states lie on the host, the same in every layer; see
    device_cache.HostDocuments. first: its first row there; checks: of each layer, of all rows."""

    def __init__(self, first: int, host: Pooled, checks: Mapping[int, StateChecks]):
        self.identity, self.layers = str(first), list(checks)
        self._first, self._host, self._checks = first, host, checks

    def counts(self, rows: Tensor) -> Tensor:
        return torch.ones_like(rows)

    def states(self, layer: int) -> Pooled:
        return self._host

    def read_into(self, layer: int, rows: Tensor, out: Pooled) -> None:
        chosen = rows + self._first
        if self._checks[layer].changed(chosen) is not None:
            raise BankError("states in host memory are not what was drawn")
        gather(self._host, chosen, out)


class _Bed:
    """A model of the 4B geometry, and the memory that it is asked about."""

    def __init__(self, sizes: BatterySizes):
        self._sizes, self._config = sizes, sizes.large
        self._device = device()
        self._dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self._layers = self._config.router_layers
        self._one: Tensor | None = None  # of all layers, once they share their keys

    @cached_property
    def model(self) -> Any:
        return random_decoder(self._config, self._device, self._dtype)

    @cached_property
    def keys(self) -> dict[int, Tensor]:
        """Router layer -> [C, V], each another."""
        return {layer: self._drawn_keys() for layer in self._layers}

    @cached_property
    def host(self) -> Pooled:
        """K and V [C, G, D] of every layer, where a bank keeps them, and one layer's keys."""
        shape = self._sizes.chunks, self._config.kv_heads, self._config.head_dim
        k, v = (torch.empty(shape, dtype=torch.bfloat16) for _ in "kv")
        for out in (k, v):
            drawn = draw(min(_DRAWN, len(out)), *shape[1:], dtype=torch.bfloat16).cpu()
            for part in out.split(_DRAWN):
                part.copy_(drawn[: len(part)])
        keys = self._one if self._one is not None else self.keys[self._layers[0]]
        return Pooled(k, v, keys.cpu())

    @cached_property
    def checks(self) -> dict[int, StateChecks]:
        """Of each layer, as a bank has them: a document is compared when it is first read."""
        k, v, chunks = self.host.k, self.host.v, self._sizes.chunks
        bounds = np.arange(min(_DRAWN, chunks) + 1) * k[:1].nbytes
        crc = np.resize(rows_crc(raw_bytes(k), raw_bytes(v), bounds), chunks)
        each = torch.arange(chunks + 1)
        return {layer: StateChecks(self.host, each, crc) for layer in self._layers}

    @cached_property
    def view(self) -> MemoryView:
        return self.view_of(1)

    def share_keys(self) -> None:
        """One layer's keys are every layer's from now on; the others' memory is free."""
        self.__dict__.pop("view", None)
        keys = self.__dict__.pop("keys", None)
        self._one = next(iter(keys.values())) if keys else None
        if keys:
            keys.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _drawn_keys(self) -> Tensor:
        heads, width = self._config.router_key_heads, self._config.router_head_dim
        return unit_heads(self._sizes.chunks, heads, torch.bfloat16, width).flatten(1)

    def view_of(self, segments: int, form: KeyForm = "stored") -> MemoryView:
        """The memory in so many segments, as a server opens them."""
        config, chunks = self._config, self._sizes.chunks
        if self._one is None and segments > 1:
            self._one = self._drawn_keys()
        cuts = [chunks * n // segments for n in range(segments + 1)]
        spans = list(pairwise(cuts))
        placed = self._placed(spans, form)
        parts = [self._part(*each, form) for each in zip(spans, placed, strict=True)]
        live = torch.ones(chunks, dtype=torch.bool)
        nothing_kept = DeviceDocuments(0, self._device)
        searcher = LocalSearcher(parts, config.router, live, nothing_kept.read)
        counts, numbers = torch.ones(chunks, dtype=torch.int64), torch.arange(chunks)
        return MemoryView(
            searcher, config.router, config.kv_heads, config.head_dim, counts, numbers, {}, live
        )

    def _placed(
        self, spans: Sequence[tuple[int, int]], form: KeyForm
    ) -> list[dict[int, PlacedKeys]]:
        """Where each segment's keys of each layer are searched: those that are drawn, or a table of
        rounded ones."""
        drawn = self.keys if self._one is None else dict.fromkeys(self._layers, self._one)
        if form == "stored":
            return [
                {layer: PlacedKeys(partial(_the, full), first) for layer, full in drawn.items()}
                for first, _ in spans
            ]
        different = self._layers if self._one is None else self._layers[:1]
        width, heads = drawn[different[0]].shape[1], self._config.router_key_heads
        table = KeyTable(dict.fromkeys(different, width), torch.bfloat16, heads, form, self._device)
        rows = table.place([end - first for first, end in spans])
        for own, (first, end) in zip(rows, spans, strict=True):
            for layer in different:
                own.write(layer, drawn[layer][first:end])
        return [
            {layer: own.placed(layer if self._one is None else different[0]) for layer in drawn}
            for own in rows
        ]

    def _part(self, span: tuple[int, int], placed: dict[int, PlacedKeys], form: KeyForm) -> Part:
        config, (first, end) = self._config, span
        cu = torch.arange(end - first + 1)

        def layer_keys(layer: int) -> LayerKeys:
            # Rounded keys are compared with those on the host; others are what is searched.
            full = placed[layer].all() if form == "stored" else self.host.key
            given = full[first:end], cu, config.router, config.router_key_heads, form
            return LayerKeys(*given, self._device, placed[layer])

        if self._one is None:
            keys = {layer: layer_keys(layer) for layer in self._layers}
        else:
            keys = dict.fromkeys(self._layers, layer_keys(self._layers[0]))
        return Part(first, cu, keys, _Segment(first, self.host, self.checks))

    # What is measured.

    def keys_gb(self) -> Measured:
        held = sum(
            part.keys[n].searched_bytes for part in self.view.searcher.parts for n in self._layers
        )
        chunks = self._sizes.chunks
        planned = key_bytes(self._config, chunks, chunks, "bfloat16") * len(self._layers)
        return Measured(held / 1e9, planned / 1e9, f"{len(self._layers)} layers")

    def search(self, m: int) -> Measured:
        return self.one_layer(self.view, m)

    def one_layer(self, view: MemoryView, m: int) -> Measured:
        """The search that serves, of m questions in one layer; documents end on the host."""
        query, cu = self._query(m)
        layer, k = self._layers[0], self._config.router.top_k
        ms = self._ms(lambda: view.searcher.best(layer, query, cu, k, None))
        return Measured(ms, self._search_floor(m, view))

    def all_layers(self, m: int) -> Measured:
        query, cu = self._query(m)

        def run() -> None:
            for layer in self._layers:
                self.view.search(layer, query, cu)

        return Measured(self._ms(run), self._search_floor(m, self.view) * len(self._layers))

    def fetch(self, m: int) -> Measured:
        """Of other documents in every layer and run, which are compared with their checksums; then
        of the same. The floor copies as many bytes a layer from pinned memory."""
        turns = iter([self._drawn_places(m) for _ in range(self._sizes.repeats + 1)])
        states, held, now = self.view.searcher.states, self.host, {}
        count = min(m * self._config.router.top_k, self._sizes.chunks)
        size = count * (held.k[0].nbytes + held.v[0].nbytes + held.key[0].nbytes)
        block = pinned(torch.ones(size, dtype=torch.uint8), self._device)

        def fresh() -> None:
            now.update(zip(self._layers, next(turns), strict=True))
            again()

        def again() -> None:
            for layer, places in now.items():
                states(layer, places)

        def copy() -> None:
            for _ in self._layers:
                block.to(self._device, non_blocking=True, copy=True)

        sides = {"fresh": fresh, "again": again, "copy": copy}
        times = in_turns(sides, self._sizes.repeats)
        note = f"{len(self._layers) * size / 1e6:.1f} MB, router keys with them; "
        note += f"{median(times['again']):.2f} ms of documents that were read before"
        return Measured(median(times["fresh"]), min(times["copy"]), note)

    def _drawn_places(self, m: int) -> list[Tensor]:
        """[p] ascending, for each layer."""
        count = min(m * self._config.router.top_k, self._sizes.chunks)
        drawn = (sample(range(self._sizes.chunks), count) for _ in self._layers)
        return [torch.tensor(sorted(each)) for each in drawn]

    def first_token(self, m: int, view: MemoryView | None = None) -> Measured:
        view = view or self.view
        with_memory, alone = self._prefills(m, view)
        floor = alone + self._search_floor(m, view) * len(self._layers)
        return Measured(with_memory, floor, f"{alone:.2f} ms without a memory")

    def added(self, m: int) -> Measured:
        with_memory, alone = self._prefills(m, self.view)
        floor = self._search_floor(m, self.view) * len(self._layers)
        return Measured(max(with_memory - alone, 0.0), floor)

    def decode(self, m: int) -> Measured:
        """Greedy tokens of all questions; the floor reads every weight once a step."""
        steps, runs = self._sizes.decoded, self._sizes.repeats // 3 + 1
        prefill = self._prefill(m, self.view)
        limit = int(prefill.ctx_cu.diff().max()) + steps * (runs + 1)
        runner = ModelRunner(self.model, m, limit)
        runner.admit(prefill, range(m))

        def run() -> None:
            for _ in range(steps):
                chosen = runner.choose([None] * m, self._config.vocab_size)
                runner.feed([[token] for token in chosen])

        ms = self._ms(run, runs)
        read = sum(p.numel() * p.element_size() for p in self.model.parameters())
        floor = m / (read / Floor.of(torch.bfloat16).bytes_per_ms) * 1e3
        return Measured(m * steps / ms * 1e3, floor, f"{ms / steps:.2f} ms a step")

    # What they are made of.

    def _ms(self, run: Callable[[], Any], repeats: int | None = None) -> float:
        with torch.inference_mode():
            return median(in_turns({"run": run}, repeats or self._sizes.repeats)["run"])

    def _query(self, m: int) -> tuple[Tensor, Tensor]:
        """Random query vectors [m T, V] as a router makes them: unit heads, by their number."""
        heads, width = self._config.router_key_heads, self._config.router_head_dim
        tokens = self._sizes.question_tokens
        drawn = unit_heads(m * tokens, heads, torch.float32, width).flatten(1) / heads
        return drawn, every(m, tokens)

    def _search_floor(self, m: int, view: MemoryView) -> float:
        """ms of one layer: its keys read once, or multiplied with all query vectors."""
        held = sum(part.keys[self._layers[0]].searched_bytes for part in view.searcher.parts)
        rows = m * self._sizes.question_tokens
        flops = 2.0 * rows * self._sizes.chunks * self._config.sizes["router_keys"]
        return Floor.of(torch.bfloat16).ms(held, flops)

    def _contexts(self, m: int) -> tuple[Tensor, ...]:
        """tokens, ctx_cu, positions, is_query and memory_from of m questions."""
        asked = self._sizes.question_tokens
        length, vocabulary = HEAD + asked + TAIL, self._config.vocab_size
        tokens = torch.randint(vocabulary, (m * length,), device=self._device)
        positions = context_positions(length, HEAD, self._config.router.top_k).repeat(m)
        place = torch.arange(length).repeat(m)
        is_query = (place >= HEAD) & (place < HEAD + asked)
        given = (positions, is_query, torch.full((m,), HEAD))
        return tokens, every(m, length), *(x.to(self._device) for x in given)

    @torch.inference_mode()
    def _prefill(self, m: int, view: MemoryView) -> Prefill:
        return self.model.prefill(*self._contexts(m), view)

    def _prefills(self, m: int, view: MemoryView) -> tuple[float, float]:
        """ms to the first token, with the memory and without."""
        given = self._contexts(m)
        sides = {
            "memory": lambda: self.model.prefill(*given, view),
            "alone": lambda: self.model.prefill_alone(*given[:3]),
        }
        first = {
            name: lambda run=run: self.model.logits(run().last).argmax(1).tolist()
            for name, run in sides.items()
        }
        with torch.inference_mode():
            times = in_turns(first, self._sizes.repeats)
        return median(times["memory"]), median(times["alone"])
