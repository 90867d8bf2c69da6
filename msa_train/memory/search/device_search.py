"""Exact search in keys on a device: the same bound and the same answer as certified.py.

However many segments a memory has, a search launches the same: one product for the scores of all
documents, and the documents that may be among the best leave the device in one copy, the only time
that the host waits. Where the keys that are searched are the stored ones, if in another dtype,
exact scores are computed beside them and come along. For rounded keys the query comes along: the
stored ones lie on the host, which scores the few documents in doubt itself. Only where that is too
much work do their keys go to the device, and the host waits again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from msa_kernels import QuantisedKeys, cumulative, quantised_document_scores
from torch import Tensor

from msa_train.memory.search.key_table import SearchedKeys, rows_of
from msa_train.memory.search.keys import LayerKeys, chunks_of, largest_of, lost_in_sums
from msa_train.model.config import RouterConfig
from msa_train.model.transfer import moved

Pairs = tuple[Tensor, Tensor, Tensor]  # context (ascending), row (ascending in each), exact score

# Documents that are looked at for each of the k best: 8 bits leave some 20 to 50 in doubt for 16
# (docs/memory.md), exact products one or two more than 16.
_WHOLE_LISTED, _LISTED = 2, 16
_BYTES = 256 << 20  # of keys and products in float64 that are held at once
# Products of two numbers that the host forms for a layer, not to wait a second time: 32 chunks of
# each of 32 questions by one vector of 1,024 values.
_ON_HOST = 1 << 20
_FEW_VECTORS = 1 << 13  # that are rather repeated for all contexts than counted for each
_SLACK = 1e-6  # float32 roundings of a bound, of its size


class DocumentRows:
    """Documents of some parts as their keys lie in a table: made once, for all layers of a view.

    A row is the place of a document among those of all parts; in the table they may lie in another
    order, and between them rows of nobody, which count as documents without a row.

    count, chunks: in the table; row [count] of each document, -1 for nobody's; at [n] where each
    row's document is; chunk_cu [count+1]; longest: chunks of a document. On the device: the same as
    cu, bank_cu, and spans [count, 2], the first and last chunk of each document.
    """

    def __init__(self, parts: Sequence[LayerKeys], device: torch.device):
        self.device = device
        counts, self.row = _in_table_order(parts)
        own = self.row >= 0
        self.count, self.chunks = len(counts), int(counts.sum())
        self.longest = int(counts[own].max()) if bool(own.any()) else 0
        self._nobodys = None if bool(own.all()) else ~own
        self.at = torch.empty(int(own.sum()), dtype=torch.int64)
        self.at[self.row[own]] = own.nonzero().squeeze(1)
        self.chunk_cu = cumulative(counts)
        bank = torch.tensor([0, self.count])
        with torch.inference_mode(False):  # kernels keep what they derive from it
            self.cu, self.bank_cu = moved([self.chunk_cu, bank], device)
        first = self.cu[:-1].clamp(max=max(0, self.chunks - 1))
        self.spans = torch.stack([first, torch.maximum(self.cu[1:] - 1, first)], 1)
        self.place = torch.arange(max(1, self.longest), device=device)
        self._masks: tuple[Tensor | None, Tensor | None] | None = None
        self._vectors: tuple[Tensor, int, Tensor, Tensor] | None = None

    def mask(self, gone: Tensor | None) -> Tensor | None:
        """[count] bool on the device: documents that are not searched; None where all are. gone [n]
        of rows. That of the latest `gone` is kept: all layers of a round ask for it."""
        kept = self._masks
        if kept is None or kept[0] is not gone:
            away = self._nobodys
            if gone is not None:
                away = gone[self.row.clamp(min=0)] | (self.row < 0)
            there = None if away is None else moved([away], self.device)[0]
            self._masks = kept = gone, there
        return kept[1]

    def padded(self, query: Tensor, query_cu: Tensor) -> tuple[Tensor, Tensor | None]:
        """Query vectors [m, T, V] of each context, the last repeated; and [m] bool of contexts that
        have none (None: all have some). What query_cu says is kept for the next layer."""
        if len(query_cu) == 2:
            return query[None], None
        kept = self._vectors
        if kept is None or kept[0] is not query_cu or kept[1] != len(query):
            rows = _vector_rows(len(query), query_cu, self.device)
            self._vectors = kept = query_cu, len(query), *rows
        return query[kept[2]], kept[3]


def _vector_rows(vectors: int, query_cu: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which vectors each context has, and which contexts have none: see DocumentRows.padded."""
    contexts = len(query_cu) - 1
    look = query_cu.device.type == "cpu" or vectors * contexts > _FEW_VECTORS
    longest = int(query_cu.diff().max()) if look else vectors
    cu = query_cu.to(device)
    place = torch.arange(max(1, longest), device=device)
    rows = torch.minimum(cu[:-1, None] + place, cu[1:, None] - 1)
    return rows.clamp(min=0), cu[1:] == cu[:-1]


def _in_table_order(parts: Sequence[LayerKeys]) -> tuple[Tensor, Tensor]:
    """Chunks of every document of the table up to the last of the parts, and its row or -1."""
    starts = np.cumsum([0, *(part.documents for part in parts)]).tolist()
    counts, rows, end = [], [], 0
    for place in sorted(range(len(parts)), key=lambda place: parts[place].placed.first):
        part, first = parts[place], parts[place].placed.first
        assert first >= end, "keys of another table"
        if first > end:
            counts.append(torch.tensor([first - end]))
            rows.append(torch.tensor([-1]))
        counts.append(part.chunk_cu.diff())
        rows.append(torch.arange(starts[place], starts[place + 1]))
        end = first + int(part.chunk_cu[-1])
    return torch.cat(counts), torch.cat(rows)


class DeviceSearch:
    """The methods of CertifiedSearch, over parts whose keys lie in one table on a device.

    For scorings that are a dot product. documents: of the same parts.
    """

    def __init__(self, parts: Sequence[LayerKeys], documents: DocumentRows, router: RouterConfig):
        self._parts, self._documents, self._scoring = parts, documents, router.scoring
        self._norm = max(part.norm for part in parts)
        self._whole = all(part.whole for part in parts)
        self._bank = documents.cu.new_zeros(0)
        keys = self._keys()
        self._error = (
            _known(largest_of(keys.error, documents.cu), documents)
            if isinstance(keys, QuantisedKeys)
            else max(float(part.error) for part in parts)
        )

    def best_pairs(
        self, query: Tensor, query_cu: Tensor, k: int, gone: Tensor | None = None
    ) -> Pairs:
        """Pairs among which are the k best of each context, with exact scores, on the CPU."""
        if not len(query) or not self._documents.chunks:
            nothing = torch.zeros(0, dtype=torch.int64)
            return nothing, nothing, torch.zeros(0)
        query = query.to(self._documents.device)
        rough = self._rough(query, query_cu, gone)
        wide = query.double()
        vectors, _ = self._documents.padded(wide, query_cu)
        listed = self._shortlist(rough, vectors, k, wide, query_cu)
        if listed is None:  # more are in doubt than a list has room for
            context, row = self._in_doubt(rough, vectors, k)
            return context, row, self.exact(query, query_cu, context, row)
        context, row, scores = listed
        if scores is None:
            scores = self.exact(query, query_cu, context, row)
        return context, row, scores

    def candidates(
        self, query: Tensor, query_cu: Tensor, k: int, gone: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(context, row) of all documents that may be among their context's k best, on the CPU."""
        query = query.to(self._documents.device)
        rough = self._rough(query, query_cu, gone)
        return self._in_doubt(rough, self._documents.padded(query.double(), query_cu)[0], k)

    def exact(self, query: Tensor, query_cu: Tensor, context: Tensor, row: Tensor) -> Tensor:
        """[P] float32 scores, on the CPU, of pairs of a context (ascending) and a document."""
        if not len(query) or not len(row):
            return torch.full(row.shape, -math.inf)
        query = query.to(self._documents.device).double()
        return self._exact_in_parts(*self._documents.padded(query, query_cu), context, row)

    # Which documents are in doubt.

    def _rough(self, query: Tensor, query_cu: Tensor, gone: Tensor | None) -> Tensor:
        """[m, count] by the keys as they are searched; -inf where `gone` [n] says."""
        documents, keys = self._documents, self._keys()
        query_cu = query_cu.to(query.device)
        if isinstance(keys, QuantisedKeys):
            scores = quantised_document_scores(query, query_cu, keys, documents.cu)
        else:
            if len(self._bank) != len(query_cu) - 1:
                self._bank = documents.cu.new_zeros(len(query_cu) - 1)
            bank = self._bank, documents.bank_cu
            scores = self._scoring.document_scores(query, query_cu, keys, documents.cu, *bank)
        mask = documents.mask(gone)
        return scores if mask is None else scores.masked_fill_(mask, -math.inf)

    def _keys(self) -> SearchedKeys:
        """Of the whole table, as far as it is known here."""
        return rows_of(self._parts[0].placed.all(), slice(self._documents.chunks))

    def _shortlist(
        self, rough: Tensor, vectors: Tensor, k: int, query: Tensor, query_cu: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """(context, row) of all that may be among their context's k best, and their exact scores
        where the keys are at hand, or on the host and few; None where more documents may be than a
        list has room for.

        A list has the documents whose upper bounds are highest. If the last one's does not reach
        the k-th best lower bound, no document outside does.
        """
        lengths, error = vectors.norm(dim=2), self._error
        count = min(self._documents.count, (_WHOLE_LISTED if self._whole else _LISTED) * k)
        if isinstance(error, Tensor):
            reach = lengths.amax(1, keepdim=True).float() * (1 + 2e-5)
            upper, at = torch.addcmul(rough, reach, error).topk(count, 1)
            parts = [lengths, upper, at, rough.gather(1, at), error[at]]
        else:
            upper, at = rough.topk(count, 1)
            parts = [lengths, upper, at]
        if at_hand := self._whole and self._held(vectors, count) <= _BYTES:
            parts.append(self._exact_in_table(vectors, at))
        # Few, or the documents in doubt would be more than the host scores anyway.
        if along := not self._whole and query.numel() * _LISTED <= _ON_HOST:
            parts += [query, query_cu] if query_cu.device == query.device else [query]
        lengths, upper, at, *more = _brought(parts)
        exact = more.pop() if at_hand else None
        if along:
            query_cu = more.pop().long() if query_cu.device == query.device else query_cu
            query = more.pop()
        near = self._near(lengths, upper, *(more or (upper, float(error))), k)
        if near is None:
            return None
        context, column = near.nonzero().unbind(1)
        row = self._documents.row[at[context, column].long()]
        order = _ascending(context, row)
        context, column, row = context[order], column[order], row[order]
        if exact is not None:
            return context, row, exact[context, column].float()
        return context, row, self._exact_on_host(query, query_cu, context, row) if along else None

    def _near(
        self, lengths: Tensor, upper: Tensor, scores: Tensor, error: Tensor | float, k: int
    ) -> Tensor | None:
        """[m, c] bool: which of the listed may be among the k best; None where others may be."""
        bound = self._bound(lengths, error)
        least = (scores - bound).topk(k, 1).values[:, -1:]
        if upper.shape[1] < self._documents.count:
            # Beyond the list only what sums lose is not in the upper bound, and its own rounding.
            last, left_out = upper[:, -1:], 0.0 if isinstance(error, Tensor) else error
            beyond = last + self._bound(lengths, left_out)
            if bool(((last > -math.inf) & (beyond + _SLACK * last.abs() >= least)).any()):
                return None
        return (scores + bound >= least) & (scores > -math.inf)

    def _in_doubt(self, rough: Tensor, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(context, row) of every document whose upper bound reaches the k-th best lower bound."""
        bound = self._bound(vectors.norm(dim=2), self._error).float()
        least = (rough - bound).topk(k, 1).values[:, -1:]
        near = (rough + bound >= least) & (rough > -math.inf)
        context, at = near.nonzero().cpu().unbind(1)
        row = self._documents.row[at]
        order = _ascending(context, row)
        return context[order], row[order]

    def _bound(self, lengths: Tensor, error: Tensor | float) -> Tensor:
        """How far rough scores may be from exact ones, as far as `error` knows documents: [m, 1],
        or [m, ...]. lengths [m, T] of query vectors."""
        sums = lost_in_sums(self._parts[0].full.shape[1], self._norm)
        return lengths.amax(1, keepdim=True) * (1 + 1e-5) * (error + sums)

    # Exact scores.

    def _held(self, vectors: Tensor, documents: int) -> int:
        """Bytes of the keys of so many documents for each context, and of what they become."""
        contexts, tokens, width = vectors.shape
        return contexts * documents * max(1, self._documents.longest) * (12 * width + 8 * tokens)

    def _exact_in_table(self, vectors: Tensor, at: Tensor) -> Tensor:
        """[m, c] float64 scores of documents at [m, c] by keys that are the stored ones."""
        documents = self._documents
        first, last = documents.spans[at].split(1, 2)
        chunk = first.flatten(1)
        if documents.longest > 1:  # a shorter document repeats its last chunk
            chunk = torch.minimum(first + documents.place, last).flatten(1)
        products = vectors @ self._keys()[chunk].double().mT  # [m, T, c * longest]
        return products.unflatten(2, (at.shape[1], -1)).amax((1, 3))

    def _exact_on_host(
        self, query: Tensor, query_cu: Tensor, context: Tensor, row: Tensor
    ) -> Tensor | None:
        """As exact, all of it on the CPU; None for too many products.

        No pair is of a context without vectors: nothing of it is in doubt.
        """
        vectors, _ = _vector_rows(len(query), query_cu, query.device)
        at, cu = self._documents.at[row], self._documents.chunk_cu
        chunks = torch.bincount(context, cu[at + 1] - cu[at], minlength=1)  # of each context
        if vectors.numel() * query.shape[1] * int(chunks.max()) > _ON_HOST:
            return None
        if not len(row):
            return torch.zeros(0)
        return self._exact_in_parts(query[vectors], None, context, row)

    def _exact_in_parts(
        self, vectors: Tensor, empty: Tensor | None, context: Tensor, row: Tensor
    ) -> Tensor:
        """As _exact_of, in halves of the pairs where all of them would take too much: a context has
        as much room as the one with the most."""
        first, most = int(context[0]), int(torch.bincount(context).max())
        contexts = slice(first, int(context[-1]) + 1)
        vectors, empty = vectors[contexts], None if empty is None else empty[contexts]
        context = context - first
        if len(row) == 1 or self._held(vectors, most) <= _BYTES:
            return self._exact_of(vectors, empty, context, row)
        half = len(row) // 2
        halves = (context[:half], row[:half]), (context[half:], row[half:])
        return torch.cat([self._exact_in_parts(vectors, empty, *each) for each in halves])

    def _exact_of(
        self, vectors: Tensor, empty: Tensor | None, context: Tensor, row: Tensor
    ) -> Tensor:
        """[P] float32, on the CPU; by the stored keys of the host where those here are rounded, on
        whatever device the vectors are."""
        at, cu = self._documents.at[row], self._documents.chunk_cu
        counts = cu[at + 1] - cu[at]
        chunks = chunks_of(at, cu)
        contexts = context.repeat_interleave(counts)
        of_context = torch.bincount(contexts, minlength=len(vectors))
        first = of_context.cumsum(0) - of_context
        place = torch.arange(len(chunks)) - first[contexts]
        shape = len(vectors), int(of_context.max())
        if not shape[1]:
            return torch.full(row.shape, -math.inf)
        entry = contexts * shape[1] + place  # of the padded batch
        if self._whole:
            index = torch.zeros(shape, dtype=torch.int64)
            index.view(-1)[entry] = chunks
            keys = self._keys()[moved([index], vectors.device)[0]]
        else:
            stored = self._parts[0].full
            keys = torch.zeros(shape[0] * shape[1], stored.shape[1], dtype=stored.dtype)
            self._read_stored(keys, entry, chunks)
            keys = moved([keys], vectors.device)[0].unflatten(0, shape)
        products = (vectors @ keys.double().mT).amax(1)
        if empty is not None:
            products.masked_fill_(empty[:, None], -math.inf)
        scores = products.cpu().flatten()[entry].float().numpy()
        found, present = np.full(row.shape, -math.inf, np.float32), (counts > 0).numpy()
        if present.any():  # reduceat knows no empty documents
            starts = (counts.cumsum(0) - counts).numpy()[present]
            found[present] = np.maximum.reduceat(scores, starts)
        return torch.from_numpy(found)

    def _read_stored(self, out: Tensor, entry: Tensor, chunks: Tensor) -> None:
        """Stored keys of chunks, by their rows in the table, into rows `entry` of `out`."""
        ordered, order = chunks.sort()
        parts = sorted(self._parts, key=lambda part: part.placed.first)
        firsts = torch.tensor([part.placed.first for part in parts])
        ends = torch.searchsorted(ordered, firsts).tolist()
        found = [
            part.full[ordered[low:high] - part.placed.first].cpu()
            for part, (low, high) in zip(parts, pairwise([*ends, len(ordered)]), strict=True)
            if low < high
        ]
        out[entry[order]] = torch.cat(found)


def _brought(parts: Sequence[Tensor]) -> list[Tensor]:
    """Tensors on the CPU by one copy, in float64, which holds every place."""
    joined = torch.cat([part.flatten() for part in parts]).cpu()
    sizes = [part.numel() for part in parts]
    return [x.view(part.shape) for x, part in zip(joined.split(sizes), parts, strict=True)]


def _known(errors: Tensor, documents: DocumentRows) -> Tensor:
    """[count] errors, those of nobody's rows, which may be any number, as 0."""
    nobodys = documents.mask(None)
    return errors if nobodys is None else errors.masked_fill_(nobodys, 0.0)


def _ascending(context: Tensor, row: Tensor) -> Tensor:
    """The order in which contexts ascend, and rows within each."""
    return torch.from_numpy(np.lexsort((row.numpy(), context.numpy())))
