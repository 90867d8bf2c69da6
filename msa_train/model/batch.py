"""MemoryBatch: documents and active contexts as two packed, padding-free streams (SPEC section 1).

Shape letters used in the whole package: Nd document tokens, Na active tokens, n documents,
m contexts, b banks, C chunks, H query heads, G key/value heads, D head dim, V = G*D, P chunk size,
K top_k, S selected chunk entries. `*_cu` are cumulative lengths: int64, first entry 0.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise

import torch
from msa_kernels import chunk_offsets
from msa_kernels.ragged import chunk_token_offsets
from torch import Tensor

from msa_train.model.transfer import moved

IGNORE = -100  # label of a token that is not written by the model


@dataclass(frozen=True)
class OwnPart:
    """Which adjacent documents of a batch a rank encodes, and with which contexts it asks.

    bounds [ranks+1]: where each rank's documents begin. asked: of every rank in order the banks of
    its contexts [m], and their query tokens [m].
    """

    documents: slice
    contexts: slice
    bounds: tuple[int, ...]
    asked: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class MemoryBatch:
    """b banks of documents, each serving some of m contexts; contexts do not see one another.

    Documents of a bank stand in ascending document number: equal scores go to the lower number.
    `labels[t]` is the token that follows t (already shifted), IGNORE where the model is not asked.
    `memory_from[c]`: how many leading tokens of context c are template head: they never see memory.
    `own`: what is this rank's, where ranks share a batch (None: all): doc_tokens are those of its
    documents, and no other contexts are here.
    """

    doc_tokens: Tensor  # [Nd]
    doc_cu: Tensor  # [n+1] tokens
    doc_numbers: Tensor  # [n] global document numbers
    doc_ids: Tensor  # [n] digests of the texts: the same document has the same one in every bank
    bank_cu: Tensor  # [b+1] documents
    tokens: Tensor  # [Na]
    ctx_cu: Tensor  # [m+1] tokens
    ctx_bank: Tensor  # [m]
    positions: Tensor  # [Na] RoPE positions
    is_query: Tensor  # [Na] bool: routing query tokens
    memory_from: Tensor  # [m]
    labels: Tensor  # [Na]
    positives: Tensor  # [m, n] bool
    masked: Tensor  # [m, n] bool: neither positive nor negative
    doc_labels: Tensor | None = None  # [Nd]; given, the documents' final states are computed too
    own: OwnPart | None = None
    source: MemoryBatch | None = field(default=None, repr=False)  # that this is a copy of, by `to`

    def to(self, device: torch.device | str) -> MemoryBatch:
        """The same on a device; what is known of it on the host stays known there."""
        source = self if self.source is None else self.source
        return replace(self, **_tensors_on(torch.device(device), self), source=source)

    @property
    def on_host(self) -> MemoryBatch:
        """The same in host memory, where sizes are read and tables made without waiting."""
        if self.doc_tokens.device.type == "cpu":
            return self
        return self.to("cpu") if self.source is None else self.source

    @property
    def documents(self) -> PackedDocuments:
        """Those that are encoded here."""
        doc_cu = self.on_host.doc_cu
        cu = doc_cu if self.own is None else _part(doc_cu, self.own.documents)
        return PackedDocuments(self.doc_tokens, cu)

    def share(self, rank: int, ranks: int) -> MemoryBatch:
        """What one of `ranks` ranks does of it: about equally many tokens of documents, perhaps
        none, and of contexts. A rank without contexts has one that asks and says nothing.

        Sizes and masks of all documents stay, since its contexts read all. On the host.
        """
        if ranks == 1:
            return self
        assert self.doc_labels is None, "final states of documents stay where they are encoded"
        contexts = [slice(*pair) for pair in pairwise(even_parts(self.ctx_cu, ranks))]
        parts = [self._asking(each) for each in contexts]
        asked = tuple((p.ctx_bank, query_rows(p.is_query, p.ctx_cu)[1].diff()) for p in parts)
        bounds = even_parts(self.doc_cu, ranks)
        documents = slice(*bounds[rank : rank + 2])
        tokens = self.doc_tokens[self.doc_cu[documents.start] : self.doc_cu[documents.stop]]
        own = OwnPart(documents, contexts[rank], tuple(bounds), asked)
        return replace(parts[rank], doc_tokens=tokens, own=own)

    def _asking(self, contexts: slice) -> MemoryBatch:
        """With some adjacent contexts alone."""
        if contexts.start == contexts.stop:
            return self._asking_nothing()
        rows = slice(int(self.ctx_cu[contexts.start]), int(self.ctx_cu[contexts.stop]))
        of_tokens = ("tokens", "positions", "is_query", "labels")
        of_contexts = ("ctx_bank", "memory_from", "positives", "masked")
        return replace(
            self,
            ctx_cu=_part(self.ctx_cu, contexts),
            **{name: getattr(self, name)[rows] for name in of_tokens},
            **{name: getattr(self, name)[contexts] for name in of_contexts},
        )

    def _asking_nothing(self) -> MemoryBatch:
        """With one context, of one token without label or question: no rank runs on no tokens."""
        zero, none = self.ctx_cu.new_zeros(1), self.positives.new_zeros(1, len(self.doc_cu) - 1)
        return replace(
            self, tokens=zero, ctx_cu=torch.tensor([0, 1]), ctx_bank=zero, positions=zero,
            is_query=zero.bool(), memory_from=zero + 1, labels=zero + IGNORE, positives=none,
            masked=none,
        )  # fmt: skip

    @property
    def label_count(self) -> int:
        return len(self.labelled_rows)

    @property
    def labelled_rows(self) -> Tensor:
        """Rows, ascending, of all_labels that the model is asked for; on the host."""
        return (self.on_host.all_labels != IGNORE).nonzero().squeeze(1)

    @property
    def all_labels(self) -> Tensor:
        """Of all final states: [Na], or [Nd+Na] with labels of documents."""
        if self.doc_labels is None:
            return self.labels
        return torch.cat([self.doc_labels, self.labels])

    @property
    def routed_contexts(self) -> Tensor:
        """Contexts, ascending, that have a positive and so take the router loss; on the host."""
        return self.on_host.positives.any(1).nonzero().squeeze(1)

    @property
    def routed_context_count(self) -> int:
        return len(self.routed_contexts)


@dataclass(frozen=True)
class StreamLayout:
    """What every layer needs to know of a batch, computed once per forward pass."""

    doc_token_count: int
    doc_cu: Tensor  # [n+1]
    bank_cu: Tensor  # [b+1]
    chunk_cu: Tensor  # [n+1]
    token_cu: Tensor  # [C+1] tokens of the stream's chunks
    ctx_cu: Tensor  # [m+1]
    ctx_bank: Tensor  # [m]
    memory_from: Tensor  # [m]
    positions: Tensor  # [Nd+Na]
    query_index: Tensor  # [Nq] rows of the ACTIVE stream that are query tokens
    query_cu: Tensor  # [m+1]
    asking: Tensor  # [m'] contexts with query tokens
    keep_documents: bool  # the documents' final hidden states are wanted

    @classmethod
    def of(cls, batch: MemoryBatch, chunk_size: int, stored: bool = False) -> StreamLayout:
        """stored: the documents' pooled states are at hand, their tokens not in the stream.

        Made on the host and moved to the batch's device at once.
        """
        device, batch = batch.doc_tokens.device, batch.on_host
        query_index, query_cu = query_rows(batch.is_query, batch.ctx_cu)
        doc_cu = batch.doc_cu[:1] if stored else batch.doc_cu
        return cls(
            doc_token_count=int(doc_cu[-1]),
            doc_cu=doc_cu,
            bank_cu=batch.bank_cu,
            chunk_cu=chunk_offsets(batch.doc_cu, chunk_size),
            token_cu=chunk_token_offsets(doc_cu, chunk_size),
            ctx_cu=batch.ctx_cu,
            ctx_bank=batch.ctx_bank,
            memory_from=batch.memory_from,
            positions=torch.cat([positions_within(doc_cu), batch.positions]),
            query_index=query_index,
            query_cu=query_cu,
            asking=query_cu.diff().nonzero().squeeze(1),
            keep_documents=batch.doc_labels is not None,
        ).to(device)

    def to(self, device: torch.device) -> StreamLayout:
        return replace(self, **_tensors_on(device, self))


@dataclass(frozen=True)
class PackedDocuments:
    """Packed documents without contexts: what is encoded of them is their pooled memory."""

    tokens: Tensor  # [Nd]
    cu: Tensor  # [n+1] on the host, wherever the tokens are

    def nothing(self) -> PackedDocuments:
        """A document of one token, for a rank that has none and must encode when others do."""
        return PackedDocuments(self.tokens.new_zeros(1), torch.tensor([0, 1]))

    def groups(self, limit: int | None) -> list[PackedDocuments]:
        """In order, each as many documents as have at most `limit` tokens (or one, longer); None:
        one group of all. None of no documents."""
        ends, first, groups = self.cu.tolist(), 0, []
        limit = ends[-1] if limit is None else limit
        while first < len(ends) - 1:
            last = max(bisect_right(ends, ends[first] + limit) - 1, first + 1)
            groups.append(self._part(first, last))
            first = last
        return groups

    def _part(self, first: int, last: int) -> PackedDocuments:
        tokens = self.tokens[int(self.cu[first]) : int(self.cu[last])]
        return PackedDocuments(tokens, _part(self.cu, slice(first, last)))

    def layout(self, chunk_size: int) -> StreamLayout:
        """On the tokens' device."""
        none, nobody = self.cu[:0], self.cu[:1]
        return StreamLayout(
            doc_token_count=len(self.tokens),
            doc_cu=self.cu,
            bank_cu=nobody,
            chunk_cu=chunk_offsets(self.cu, chunk_size),
            token_cu=chunk_token_offsets(self.cu, chunk_size),
            ctx_cu=nobody,
            ctx_bank=none,
            memory_from=none,
            positions=positions_within(self.cu),
            query_index=none,
            query_cu=nobody,
            asking=none,
            keep_documents=False,
        ).to(self.tokens.device)


def _tensors_on(device: torch.device, given: MemoryBatch | StreamLayout) -> dict[str, Tensor]:
    """Its tensors there, by name."""
    tensors = {f.name: getattr(given, f.name) for f in fields(given)}
    tensors = {name: x for name, x in tensors.items() if isinstance(x, Tensor)}
    return dict(zip(tensors, moved(list(tensors.values()), device), strict=True))


def even_parts(cu: Tensor, parts: int) -> list[int]:
    """[parts+1] Where adjacent parts of packed sequences begin and end: at the bounds of sequences
    next to the multiples of total / parts."""
    aims = torch.arange(1, parts, dtype=torch.float64) * (int(cu[-1]) / parts)
    between = (cu[1:] + cu[:-1]).double() / 2  # nearer to the end of a sequence from its middle on
    return [0, *torch.searchsorted(between, aims).tolist(), len(cu) - 1]


def _part(cu: Tensor, sequences: slice) -> Tensor:
    """Cumulative lengths of adjacent packed sequences."""
    cu = cu[sequences.start : sequences.stop + 1]
    return cu - cu[0]


def positions_within(cu: Tensor, total: int | None = None) -> Tensor:
    """[N] 0, 1, 2, ... from the start of each packed sequence (document-wise RoPE). total: N, where
    it is known: the host would wait for it."""
    total = int(cu[-1]) if total is None else total
    starts = cu[:-1].repeat_interleave(cu.diff(), output_size=total)
    return torch.arange(total, device=cu.device) - starts


def query_rows(is_query: Tensor, ctx_cu: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the query tokens [Nq] and their cumulative count per context [m+1]."""
    counts = torch.cat([is_query.new_zeros(1, dtype=torch.int64), is_query.cumsum(0)])
    return is_query.nonzero().squeeze(1), counts[ctx_cu]


def context_positions(length: int, head_length: int, top_k: int) -> Tensor:
    """[length] positions of an active context: head 0..h-1, then from h+K (SPEC section 1)."""
    positions = torch.arange(length)
    return torch.where(positions < head_length, positions, positions + top_k)
