"""What ranks find in one another's documents is what one rank finds in all of them."""

from itertools import pairwise

import pytest
import torch
from msa_kernels import chunk_offsets

from msa_train.model.router import route
from tests.batches import CONTEXTS, OWN_ROUTER, RAGGED, random_batch, tiny_config
from tests.distributed.ranks import run_ranks

ROUTERS = {"tokens": {}, "pooled": OWN_ROUTER, "heads": {"head_reduce": "max"}}


def found_on(size: int, names: list[str]) -> list[dict]:
    """On each rank and for each router: its contexts, their routing, and what was fetched."""
    from msa_train.model.sharded import ShardedBank
    from msa_train.parallel import groups
    from msa_train.parallel.documents import DocumentGroup

    groups.start(1, 60, size)
    group = DocumentGroup.of(size, 60)
    return [_found(ShardedBank, group, ROUTERS[name]) for name in names]


def _found(bank, group, settings):
    batch, router, query, query_cu, keys, chunk_cu = given(settings)
    own = batch.share(group.rank, group.size)
    documents, contexts = own.own.documents, own.own.contexts
    chunks = slice(int(chunk_cu[documents.start]), int(chunk_cu[documents.stop]))
    rows = slice(int(query_cu[contexts.start]), int(query_cu[contexts.stop]))
    cu = query_cu[contexts.start : contexts.stop + 1] - query_cu[contexts.start]
    if contexts.start == contexts.stop:
        cu = torch.tensor([0, 0])  # one that asks nothing
    sharded = bank.of(own, router, group)
    routing = sharded.route(query[rows], cu, keys[chunks], router)
    places, (fetched,) = sharded.fetch(routing.chunk_index, [keys[chunks]])
    return {
        "contexts": contexts, "documents": routing.documents.numpy(),
        "scores": routing.document_scores.numpy(), "index": routing.chunk_index.numpy(),
        "rows": fetched[places].numpy(),
    }  # fmt: skip


def given(settings):
    """A batch, its router, and random queries and keys of one of its layers."""
    config = tiny_config("none" if "head_reduce" in settings else "threshold", **settings)
    router = config.router
    batch = random_batch(RAGGED, CONTEXTS, config)
    gen = torch.Generator().manual_seed(1)
    bounds = pairwise(batch.ctx_cu.tolist())
    tokens = torch.tensor([int(batch.is_query[first:last].sum()) for first, last in bounds])
    counts = router.scoring.vectors_of(tokens)
    query_cu = torch.tensor([0, *counts]).cumsum(0)
    chunk_cu = chunk_offsets(batch.doc_cu, router.chunk_size)
    heads = (4, 8) if settings == ROUTERS["heads"] else (16,)
    query = torch.randn(int(query_cu[-1]), *heads, generator=gen, dtype=torch.float64)
    keys = torch.randn(int(chunk_cu[-1]), 16, generator=gen, dtype=torch.float64)
    return batch, router, query, query_cu, keys, chunk_cu


@pytest.fixture(scope="module", params=[3, pytest.param(8, marks=pytest.mark.slow)])
def ranks(request):
    return run_ranks(request.param, found_on, request.param, list(ROUTERS))


@pytest.mark.parametrize("name", ROUTERS)
def test_ranks_find_what_one_rank_finds(ranks, name):
    batch, router, query, query_cu, keys, chunk_cu = given(ROUTERS[name])
    whole = route(query, query_cu, keys, chunk_cu, batch.ctx_bank, batch.bank_cu, router)
    ordered = whole.document_scores.sort(1, descending=True).values
    gaps = (ordered[:, : router.top_k] - ordered[:, 1 : router.top_k + 1]).nan_to_num(nan=1.0)
    assert (gaps > 1e-4).all(), "no order here is decided by rounding"
    seen = 0
    for found in (rank[list(ROUTERS).index(name)] for rank in ranks):
        contexts = found["contexts"]
        torch.testing.assert_close(torch.from_numpy(found["rows"]), keys[found["index"]])
        if contexts.start == contexts.stop:
            assert (found["documents"] == -1).all() and not len(found["index"])
            continue
        seen += contexts.stop - contexts.start
        assert found["documents"].tolist() == whole.documents[contexts].tolist()
        torch.testing.assert_close(
            torch.from_numpy(found["scores"]), whole.document_scores[contexts]
        )
        first, last = whole.index_cu[contexts.start], whole.index_cu[contexts.stop]
        assert found["index"].tolist() == whole.chunk_index[first:last].tolist()
    assert seen == len(CONTEXTS)
