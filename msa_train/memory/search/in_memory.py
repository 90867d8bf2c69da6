"""A memory without a bank on disk, searched in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from msa_kernels import cumulative
from torch import Tensor

from data_pipeline.schema import Document
from msa_train.errors import BankError
from msa_train.memory.bank.segment import EncodedBatch
from msa_train.memory.search.keys import LayerKeys, chunks_of
from msa_train.memory.search.searcher import LocalSearcher, Part
from msa_train.memory.search.view import MemoryView
from msa_train.model.attention import Pooled
from msa_train.model.config import RouterConfig


def joined(batches: Sequence[EncodedBatch]) -> tuple[dict[int, Pooled], Tensor]:
    """Pooled states per router layer, and chunk_cu [n+1], of all batches (at least one)."""
    if not batches:
        raise BankError("a memory needs at least one document")
    pooled = {
        layer: Pooled.joined([batch.pooled[layer] for batch in batches])
        for layer in batches[0].pooled
    }
    return pooled, cumulative(torch.cat([batch.chunks for batch in batches]))


def view_of(
    documents: Sequence[Document],
    pooled: Mapping[int, Pooled],
    chunk_cu: Tensor,
    router: RouterConfig,
    places: Tensor | None = None,
) -> MemoryView:
    """A view of encoded documents, ascending by number: all of them, or those at `places`; searched
    where the states are.

    places [n'] ascending. K and V are not copied; router keys are, unless the documents at `places`
    are consecutive.
    """
    places = torch.arange(len(documents)) if places is None else places
    counts, rows = chunk_cu.diff()[places], _consecutive(chunks_of(places, chunk_cu))
    shapes = [states.k.shape for states in pooled.values()]
    heads, head_dim = max(shape[1] for shape in shapes), shapes[0][2]  # voting layers have no heads
    cu = cumulative(counts)
    keys = {}
    for layer, states in pooled.items():
        key_heads = states.key.shape[1] // (router.head_dim or head_dim)
        full = states.key[rows]
        keys[layer] = LayerKeys(full, cu, router, key_heads, device=full.device)

    def read(layer: int, documents: Tensor) -> Pooled:
        chunks, states = chunks_of(places[documents], chunk_cu), pooled[layer]
        return states.map(lambda x: x[chunks.to(x.device)])

    live = torch.ones(len(places), dtype=torch.bool)
    searcher = LocalSearcher([Part(0, cu, keys, read)], router, live)
    held = {documents[place].number: documents[place] for place in places.tolist()}
    numbers = torch.tensor(list(held), dtype=torch.int64)
    return MemoryView(searcher, router, heads, head_dim, counts, numbers, held, live)


def _consecutive(rows: Tensor) -> Tensor | slice:
    """A slice where ascending rows are consecutive: indexing with it copies nothing."""
    first, count = (int(rows[0]) if len(rows) else 0), len(rows)
    if count == 0 or int(rows[-1]) == first + count - 1:
        return slice(first, first + count)
    return rows
