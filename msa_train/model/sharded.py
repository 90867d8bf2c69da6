"""Routing over a bank that lies in parts on several ranks: only what is found goes between them.

Each rank keeps the pooled states of the documents it encoded (document parallelism). Router queries
go to all ranks, which score their own documents; scores come back, and of the documents with the
best ones pooled keys and values are fetched. All of it takes gradients: what was sent one way goes
back the other in the backward pass, in which all ranks must take part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from msa_kernels import chunk_offsets, cumulative, select_chunks, top_documents
from torch import Tensor

from msa_train.model.batch import MemoryBatch
from msa_train.model.config import RouterConfig
from msa_train.model.router import Routing
from msa_train.model.transfer import moved
from msa_train.parallel.documents import DocumentGroup


@dataclass(frozen=True)
class ShardedBank:
    """Where the documents and the contexts of a batch lie that the ranks of a group share.

    contexts, queries, chunks: how many every rank has (queries: vectors, not tokens); the tables
    are of all contexts, and of this rank's documents.
    """

    group: DocumentGroup
    contexts: list[int]
    queries: list[int]
    chunks: list[int]
    documents: list[int]
    ctx_bank: Tensor  # [M] of the contexts of all ranks
    query_cu: Tensor  # [M+1]
    bank_cu: Tensor  # [b+1] of this rank's documents
    own_chunk_cu: Tensor  # [own n + 1]
    chunk_cu: Tensor  # [n+1] of the documents of all ranks

    @classmethod
    def of(cls, batch: MemoryBatch, router: RouterConfig, group: DocumentGroup) -> ShardedBank:
        """batch: this rank's share of it."""
        host, own = batch.on_host, batch.own.documents
        asked, bounds = batch.own.asked, list(batch.own.bounds)
        counts = [router.scoring.vectors_of(tokens) for _, tokens in asked]
        chunk_cu = chunk_offsets(host.doc_cu, router.chunk_size)
        tables = (
            torch.cat([bank for bank, _ in asked]),
            cumulative(torch.cat(counts)),
            host.bank_cu.clamp(own.start, own.stop) - own.start,
            chunk_cu[own.start : own.stop + 1] - chunk_cu[own.start],
            chunk_cu,
        )
        return cls(
            group,
            [len(bank) for bank, _ in asked],
            [int(each.sum()) for each in counts],
            chunk_cu[bounds].diff().tolist(),
            torch.tensor(bounds).diff().tolist(),
            *moved(tables, batch.tokens.device),
        )

    def route(self, query: Tensor, query_cu: Tensor, keys: Tensor, router: RouterConfig) -> Routing:
        """As msa_train.model.router.route for this rank's contexts, from this rank's keys [own C,
        V]; without the gate's scores. chunk_index counts the chunks of all ranks."""
        every = _Whole.apply(query, self.queries, self.group)
        scores = router.scoring.document_scores(
            every, self.query_cu, keys, self.own_chunk_cu, self.ctx_bank, self.bank_cu
        )
        scores = self._of_own_contexts(scores)
        with torch.no_grad():
            values, documents = top_documents(scores, router.top_k)
            index, index_cu = select_chunks(documents, self.chunk_cu)
        return Routing(query, query_cu, documents, values, index, index_cu, None, scores)

    def _of_own_contexts(self, scores: Tensor) -> Tensor:
        """[M, own n] of each rank -> [own m, n]."""
        rank, own = self.group.rank, self.documents[self.group.rank]
        m = self.contexts[rank]
        send = [count * own for count in self.contexts]
        receive = [m * count for count in self.documents]
        parts = _Exchanged.apply(scores.flatten(), send, receive, self.group).split(receive)
        pairs = zip(parts, self.documents, strict=True)
        return torch.cat([part.view(m, count) for part, count in pairs], 1)

    def fetch(self, index: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Chunks of all ranks by number, index [S], of `states` [own C, ...]: where each is, [S],
        in the tensors [fetched, ...]."""
        wanted, places = index.unique(return_inverse=True)
        bounds = torch.tensor([0, *self.chunks], device=wanted.device).cumsum(0)
        asked = torch.searchsorted(wanted, bounds).diff()
        every = self.group.gather([asked[None]], [1] * self.group.size)[0].tolist()
        ask, give = every[self.group.rank], [row[self.group.rank] for row in every]
        rows = _Exchanged.apply(wanted, ask, give, self.group) - bounds[self.group.rank]
        return places, [_Exchanged.apply(each[rows], give, ask, self.group) for each in states]


class _Whole(torch.autograd.Function):
    """[own count, ...] -> [sum of counts, ...] of all ranks; gradients are summed and go back."""

    @staticmethod
    def forward(ctx, rows: Tensor, counts: list[int], group: DocumentGroup) -> Tensor:
        ctx.given = counts, group
        return group.gather([rows], counts)[0]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        counts, group = ctx.given
        return group.scatter([gradient], counts)[0], None, None


class _Exchanged(torch.autograd.Function):
    """Rows for every rank in order, `send` many, become those from every rank, `receive` many."""

    @staticmethod
    def forward(
        ctx, rows: Tensor, send: list[int], receive: list[int], group: DocumentGroup
    ) -> Tensor:
        ctx.given = send, receive, group
        return group.exchange(rows, send, receive)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        send, receive, group = ctx.given
        return group.exchange(gradient, receive, send), None, None, None
