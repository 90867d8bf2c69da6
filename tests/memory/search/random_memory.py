"""Random keys of a memory, searchers of them, and their search by plain loops."""

import torch

from msa_train.memory.search.key_table import KeyTable
from msa_train.memory.search.keys import LayerKeys
from msa_train.memory.search.searcher import LocalSearcher, Part
from msa_train.model.attention import Pooled
from msa_train.model.config import RouterConfig

HEADS, WIDTH, LAYER = 2, 8, 3
ROUTER = RouterConfig(top_k=3)


def memory(counts, seed, twins=False):
    """Keys [C, V] of unit heads, half of them equal where there are twins, and chunk_cu."""
    gen = torch.Generator().manual_seed(seed)
    keys = torch.randn(sum(counts), HEADS, WIDTH // HEADS, generator=gen)
    if twins:
        keys[: len(keys) // 2] = keys[len(keys) - len(keys) // 2 :]
    keys = torch.nn.functional.normalize(keys, dim=2).flatten(1)
    return keys, torch.tensor([0, *counts]).cumsum(0)


def part(first, keys, cu, form="stored", router=ROUTER, dtype=torch.float32):
    full = keys.to(dtype)

    def read(layer, rows):
        chunks = torch.cat([torch.arange(cu[row], cu[row + 1]) for row in rows.tolist()])
        states = full[chunks].unflatten(1, (HEADS, -1))
        return Pooled(states, -states, full[chunks])

    return Part(first, cu, {LAYER: LayerKeys(full, cu, router, HEADS, form)}, read)


def searcher_of(counts, keys, cu, cuts, form="stored", live=None, dtype=torch.float32):
    """A searcher of the documents, in parts that begin at `cuts`."""
    parts = []
    for first, end in zip(cuts, [*cuts[1:], len(counts)], strict=True):
        own = cu[first : end + 1]
        parts.append(part(first, keys[own[0] : own[-1]], own - own[0], form, dtype=dtype))
    return LocalSearcher(
        parts, ROUTER, torch.ones(len(counts), dtype=torch.bool) if live is None else live
    )


def table_searcher(
    counts, keys, cu, cuts, form="stored", live=None, dtype=torch.float32, order=None, device="cpu"
):
    """As searcher_of; the parts' keys in one table, written in this order."""
    table = KeyTable({LAYER: keys.shape[1]}, dtype, HEADS, form, device)
    spans = list(zip(cuts, [*cuts[1:], len(counts)], strict=True))
    order = range(len(spans)) if order is None else order
    sizes = [int(cu[end] - cu[first]) for first, end in spans]
    rows = dict(zip(order, table.place([sizes[each] for each in order]), strict=True))
    parts = []
    for place, (first, end) in enumerate(spans):
        own, full = cu[first : end + 1] - cu[first], keys[cu[first] : cu[end]].to(dtype)
        rows[place].write(LAYER, full)
        placed = rows[place].placed(LAYER)
        layer = LayerKeys(full, own, ROUTER, HEADS, form, device, placed)
        parts.append(Part(first, own, {LAYER: layer}, None))
    return LocalSearcher(
        parts, ROUTER, torch.ones(len(counts), dtype=torch.bool) if live is None else live
    )


def by_loops(query, query_cu, keys, cu, k, there):
    """[(score, place)] of the best documents of each context."""
    found = []
    for context in range(len(query_cu) - 1):
        rows = range(int(query_cu[context]), int(query_cu[context + 1]))
        scores = []
        for document in range(len(cu) - 1):
            pairs = [
                float((query[row].double() * keys[chunk].double()).sum())
                for row in rows
                for chunk in range(int(cu[document]), int(cu[document + 1]))
            ]
            if pairs and there[document]:
                scores.append((-torch.tensor(max(pairs)).float().item(), document))
        found.append(sorted(scores)[:k])
    return found


def questions(lengths, seed, width=WIDTH):
    gen = torch.Generator().manual_seed(seed)
    query = torch.randn(sum(lengths), width, generator=gen)
    return query, torch.tensor([0, *lengths]).cumsum(0)
