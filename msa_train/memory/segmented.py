"""A memory in several parts, each with its own tensors: search and reading as if it were one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from msa_kernels import select_chunks, top_documents
from torch import Tensor

from msa_train.model.attention import Pooled
from msa_train.model.config import RouterConfig
from msa_train.model.router import Routing, gate_scores, score_documents


@dataclass(frozen=True)
class Part:
    """Pooled states of consecutive documents per router layer; chunk_cu [n+1] within them.

    check(layer, documents) raises where the states of some documents, by place, are not to be
    trusted.
    """

    pooled: Mapping[int, Pooled]
    chunk_cu: Tensor
    check: Callable[[int, Tensor], None]


class Form(Protocol):
    kv_heads: int
    head_dim: int


class SegmentedMemory:
    """Exact search over the documents of all parts that are `live` [n]; the decoder's Memory.

    States may be narrower than the model computes in: what is read is widened. Nothing is copied
    but the winners' states.
    """

    def __init__(self, parts: Sequence[Part], form: Form, router: RouterConfig, live: Tensor):
        self._parts, self._router, self._form = list(parts), router, form
        chunks = [part.chunk_cu.diff() for part in self._parts]
        nothing = torch.zeros(1, dtype=torch.int64)
        self._chunk_cu = torch.cat([nothing, *chunks]).cumsum(0)
        ends = [int(part.chunk_cu[-1]) for part in self._parts]
        self._part_cu = torch.tensor([0, *ends]).cumsum(0)
        self._gone = None if bool(live.all()) else ~live
        self.size = int(live.sum())

    def search(self, layer: int, query: Tensor, query_cu: Tensor) -> tuple[Routing, Tensor, Tensor]:
        """Routing of m contexts, and the selected chunks' K and V in the order of chunk_index."""
        scores = self._scores(layer, query, query_cu)
        values, documents = top_documents(scores, self._router.top_k)
        index, index_cu = select_chunks(documents, self._chunk_cu)
        chunks, place = torch.unique(index, return_inverse=True)
        states = self._read(layer, chunks, query.dtype)
        gate = None
        if self._router.gate != "none":
            given = query, query_cu, states.key, self._chunk_cu, scores, index, index_cu
            gate = gate_scores(*given, self._router, place)
        routing = Routing(query, query_cu, documents, values, place, index_cu, gate, scores)
        return routing, states.k, states.v

    def _scores(self, layer: int, query: Tensor, query_cu: Tensor) -> Tensor:
        """[m, n] of all documents, -inf for those that are gone."""
        contexts = len(query_cu) - 1
        bank = query_cu.new_zeros(contexts)
        found = [query.new_empty(contexts, 0, dtype=torch.float32)]
        for part in self._parts:
            whole = query_cu.new_tensor([0, len(part.chunk_cu) - 1])
            given = query, query_cu, part.pooled[layer].key, part.chunk_cu, bank, whole
            found.append(score_documents(*given, self._router))
        scores = found[1] if len(found) == 2 else torch.cat(found, 1)
        return scores if self._gone is None else scores.masked_fill_(self._gone, -torch.inf)

    def _read(self, layer: int, chunks: Tensor, dtype: torch.dtype) -> Pooled:
        """States of chunks (ascending), widened."""
        bounds = torch.searchsorted(chunks, self._part_cu).tolist()
        found: dict[str, list[Tensor]] = {"k": [], "v": [], "key": []}
        starts = self._part_cu.tolist()
        for part, start, (first, last) in zip(self._parts, starts, pairwise(bounds), strict=False):
            if first < last:
                local = chunks[first:last] - start
                owners = torch.searchsorted(part.chunk_cu, local, right=True) - 1
                part.check(layer, owners.unique())
                for name, rows in found.items():
                    rows.append(getattr(part.pooled[layer], name)[local].to(dtype))
        heads, width = self._form.kv_heads, self._form.head_dim
        empty = torch.empty(0, heads, width, dtype=dtype)
        return Pooled(
            torch.cat([empty, *found["k"]]),
            torch.cat([empty, *found["v"]]),
            torch.cat([empty.flatten(1), *found["key"]]),
        )
