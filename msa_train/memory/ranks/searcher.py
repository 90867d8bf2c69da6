"""A snapshot of a bank searched by all ranks, as if by one: see memory/search/searcher.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from msa_kernels import cumulative
from torch import Tensor

from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.ranks.snapshot import pack
from msa_train.memory.ranks.worker_group import Call, WorkerAnswer
from msa_train.memory.search.keys import chunks_of
from msa_train.memory.search.loader import Share
from msa_train.memory.search.searcher import Found, LocalSearcher, best_of
from msa_train.model.attention import Pooled
from msa_train.model.config import RouterConfig

# Sends a call to the ranks that it names, for a searcher: what rank 0 found itself, and answers.
Ask = Callable[["DistributedSearcher", Call, Callable], tuple[Any, dict[int, WorkerAnswer]]]


class DistributedSearcher:
    """The three methods of LocalSearcher over all ranks; made by Ranks.searcher.

    Every method raises RankError for a rank that dies, fails or is late, BankError for states that
    were changed on disk, and GenerationGoneError where ranks were started again and the snapshot's
    segments are gone.

    number: of the snapshot; epoch: of the workers that have it open; own: rank 0's part; holders:
    ranks that hold some of it; workers: those of them but rank 0. shares: see Ranks. device: that
    of rank 0.
    """

    own: LocalSearcher

    def __init__(
        self,
        ask: Ask,
        number: int,
        bank: BankSnapshot,
        router: RouterConfig,
        shares: tuple[float, ...],
        device: torch.device,
    ):
        self.bank, self.router, self.number, self.epoch = bank, router, number, 0
        self._ask_ranks, self._device = ask, device
        self._owner = _owners(bank, shares)
        self._counts = bank.chunk_cu.diff()
        self.holders = self._owner.unique().tolist()
        self.workers = [rank for rank in self.holders if rank > 0]

    def __str__(self) -> str:
        return f"{self.bank.path}, generation {self.bank.manifest.generation}"

    def best(
        self, layer: int, query: Tensor, query_cu: Tensor, k: int, allowed: Tensor | None = None
    ) -> Found:
        """The k best documents of each context, on the CPU. See LocalSearcher.best."""
        tensors = {} if allowed is None else {"allowed": pack(allowed)}
        own = partial(self.own.best, layer, query, query_cu, k, allowed)
        mine, answers = self._ask({"do": "best", "k": k}, layer, query, query_cu, tensors, own)
        found = [Found(x.tensors["places"], x.tensors["scores"]) for x in answers.values()]
        return _trimmed(best_of([mine, *found], k))

    def score(self, layer: int, query: Tensor, query_cu: Tensor, places: Tensor) -> Tensor:
        """[m, c] float32 on the CPU: scores of documents by place, -1 for none."""
        own = partial(self.own.score, layer, query, query_cu, places)
        tensors = {"places": places.cpu()}
        mine, answers = self._ask({"do": "score"}, layer, query, query_cu, tensors, own)
        for answer in answers.values():  # each document has one owner, the others say -inf
            mine = torch.maximum(mine, answer.tensors["scores"])
        return mine

    def states(self, layer: int, places: Tensor) -> Pooled:
        """Rows of all chunks of documents, places [p] ascending, in their order, as stored."""
        owners = self._owner[places]
        divided = {rank: places[owners == rank] for rank in owners.unique().tolist()}
        mine = divided.pop(0, None)
        width = sum(self.bank.manifest.form.bytes(layer).values())
        call = Call(
            self._head({"do": "states"}, layer),
            f"reading layer {layer} of {self}",
            {rank: {"places": its} for rank, its in divided.items()},
            returns={rank: width * int(self._counts[its].sum()) for rank, its in divided.items()},
        )
        own, answers = self._ask_ranks(
            self, call, lambda: None if mine is None else self.own.states(layer, mine)
        )
        found = {} if mine is None else {0: own}
        found.update((rank, self._unpacked(layer, answer.data)) for rank, answer in answers.items())
        return self._in_order(layer, found, {0: mine, **divided})

    def _ask(
        self,
        head: dict[str, Any],
        layer: int,
        query: Tensor,
        query_cu: Tensor,
        tensors: Mapping[str, Tensor],
        own: Callable,
    ) -> tuple[Any, dict[int, WorkerAnswer]]:
        given = {"query_cu": query_cu.cpu(), **tensors}
        call = Call(
            self._head(head, layer),
            f"searching layer {layer} of {self}",
            dict.fromkeys(self.workers, given),
            query.to(self._device),
        )
        return self._ask_ranks(self, call, own)

    def _head(self, head: dict[str, Any], layer: int) -> dict[str, Any]:
        return {**head, "snapshot": self.number, "layer": layer}

    def _unpacked(self, layer: int, data: Tensor) -> Pooled:
        form = self.bank.manifest.form
        sizes, shapes = form.bytes(layer), form.shapes(layer)
        chunks = len(data) // sum(sizes.values())
        parts = data.split([chunks * size for size in sizes.values()])
        return Pooled(
            *(
                part.view(form.torch_dtype).view(chunks, *shape)
                for part, shape in zip(parts, shapes.values(), strict=True)
            )
        )

    def _in_order(
        self, layer: int, found: Mapping[int, Pooled], places: Mapping[int, Tensor]
    ) -> Pooled:
        """States of several ranks as one, in ascending place order."""
        if not found:
            empty = torch.empty(0, dtype=self.bank.manifest.form.torch_dtype)
            return self._unpacked(layer, empty.view(torch.uint8))
        if len(found) == 1:
            return next(iter(found.values()))
        joined = torch.cat([places[rank] for rank in found])
        order = joined.argsort()
        states = Pooled.joined(list(found.values()))
        if bool((joined.diff() > 0).all()):
            return states
        cu = cumulative(self._counts[joined])
        rows = chunks_of(order, cu).to(states.k.device)
        return states.map(lambda x: x[rows])


def _owners(bank: BankSnapshot, shares: tuple[float, ...]) -> Tensor:
    """[n] int16: the rank that holds each document."""
    owner = torch.zeros(len(bank.numbers), dtype=torch.int16)
    for start, segment in zip(bank.starts.tolist(), bank.segments, strict=False):
        for rank in range(1, len(shares)):
            first, end = Share(rank, shares).rows(segment.chunk_cu)
            owner[start + first : start + end] = rank
    return owner


def _trimmed(found: Found) -> Found:
    """Without the columns in which no context has a document."""
    width = int((found.places >= 0).any(0).sum())
    return Found(*(x[:, :width].contiguous() for x in (found.places, found.scores)))
