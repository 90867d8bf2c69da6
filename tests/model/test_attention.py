"""A router layer from its parts, against the definitions written out (SPEC sections 2 and 3)."""

import math

import torch
import torch.nn.functional as F

from msa_train.model.attention import (
    Gate,
    HeadGroup,
    Pooled,
    Projections,
    Router,
    context_layer,
    pool_documents,
    router_layer,
    router_query,
    self_attention_layer,
)
from msa_train.model.batch import StreamLayout
from tests.batches import CONTEXTS, RAGGED, random_batch, tiny_config

CONFIG = tiny_config(top_k=2)
HEADS, GROUPS, DIM, CHUNK = CONFIG.heads, CONFIG.kv_heads, CONFIG.head_dim, 4


def case(seed=0, **router):
    """A batch's layout, random normed states and projections of both streams, and a router."""
    config = tiny_config(**{"top_k": 2} | router)
    layout = StreamLayout.of(random_batch(RAGGED, CONTEXTS, config), CHUNK)
    random = torch.Generator().manual_seed(seed)
    total = len(layout.positions)
    h = torch.randn(total, config.hidden, generator=random)
    q, k, v = (torch.randn(total, n, DIM, generator=random) for n in (HEADS, GROUPS, GROUPS))
    wq, wk = (torch.randn(config.hidden, n * DIM, generator=random) for n in (HEADS, GROUPS))
    gate = Gate(torch.tensor([5.0]), torch.tensor([0.1]))
    queries, keys = (lambda x, w=w: (x @ w).unflatten(1, (-1, DIM)) for w in (wq, wk))
    router = Router(config.router, HeadGroup(HEADS), gate, queries, keys, GROUPS)
    return layout, h, Projections(q, k, v), router


def attended(q, k, v, bias):
    """One token q [H, D] over k, v [S, G, D] with bias [S] on the logits."""
    k, v = (x.repeat_interleave(HEADS // GROUPS, 1) for x in (k, v))
    logits = torch.einsum("hd,shd->hs", q, k) / math.sqrt(DIM) + bias
    return torch.einsum("hs,shd->hd", logits.softmax(1), v)


def test_pooled_states_are_means_of_chunks():
    layout, h, x, router = case()
    nd = layout.doc_token_count
    pooled = pool_documents(h[:nd], x.part(slice(nd)), layout.doc_cu, router)
    row = 0
    for first, end in zip(layout.doc_cu.tolist(), layout.doc_cu[1:].tolist(), strict=False):
        for start in range(first, end, CHUNK):
            tokens = slice(start, min(start + CHUNK, end))
            torch.testing.assert_close(pooled.k[row], x.k[tokens].mean(0))
            torch.testing.assert_close(pooled.v[row], x.v[tokens].mean(0))
            key = F.normalize(router.keys(h[tokens]).mean(0), dim=-1).flatten()
            torch.testing.assert_close(pooled.key[row], key, rtol=1e-4, atol=1e-5)
            row += 1
    assert row == len(pooled.k) == int(layout.chunk_cu[-1])


def test_each_state_of_pooled_documents_is_changed_alike():
    pooled = Pooled(torch.ones(3, 2, 4), torch.zeros(3, 2, 4), torch.ones(3, 8))
    part = pooled.map(lambda x: x[1:].half())
    assert [tuple(x.shape) for x in (part.k, part.v, part.key)] == [(2, 2, 4), (2, 2, 4), (2, 8)]
    assert part.k.dtype == torch.float16 and part.k.all() and not part.v.any()
    both = Pooled.joined([pooled, pooled.map(lambda x: x[:1] + 1)])
    assert both.k[:, 0, 0].tolist() == [1, 1, 1, 2] and both.v[:, 0, 0].tolist() == [0, 0, 0, 1]
    assert both.key[:, 0].tolist() == [1, 1, 1, 2]


def test_a_router_layer_reads_the_best_documents_and_its_own_tokens():
    layout, h, x, router = case()
    nd = layout.doc_token_count
    states, routing, pooled = router_layer(h, x, layout, router)
    own = x.part(slice(nd, None))
    bias = 5.0 * (routing.chunk_scores - 0.1)
    for context in range(len(CONTEXTS)):
        first, end = layout.ctx_cu[context : context + 2].tolist()
        entries = slice(*routing.index_cu[context : context + 2].tolist())
        chunks = routing.chunk_index[entries]
        for token in range(first, end):
            past = slice(first, token + 1)
            given = own.k[past], own.v[past], torch.zeros(token + 1 - first)
            if token - first >= 3:  # the template head never sees the memory
                memory = pooled.k[chunks], pooled.v[chunks], bias[entries]
                given = tuple(torch.cat(pair) for pair in zip(memory, given, strict=True))
            expected = attended(own.q[token], *given)
            torch.testing.assert_close(states[nd + token], expected, rtol=1e-4, atol=1e-5)
    alone = self_attention_layer(x, layout)
    torch.testing.assert_close(states[:nd], alone[:nd])  # documents never see a memory
    last, again, _ = router_layer(h, x, layout, router, contexts_only=True)
    assert torch.equal(last, states[nd:])
    assert torch.equal(again.documents, routing.documents)


def test_stored_documents_are_read_like_those_of_the_stream():
    layout, h, x, router = case()
    nd = layout.doc_token_count
    states, _, pooled = router_layer(h, x, layout, router)
    read, _ = context_layer(h[nd:], x.part(slice(nd, None)), layout, router, pooled)
    assert torch.equal(read, states[nd:])


def test_a_coupled_router_asks_with_q_and_is_known_by_pooled_k():
    layout, h, x, router = case(decouple=False)
    coupled = Router(router.settings, router.group, router.gate, None, None, GROUPS)
    nd = layout.doc_token_count
    documents, contexts = x.part(slice(nd)), x.part(slice(nd, None))
    pooled = pool_documents(h[:nd], documents, layout.doc_cu, coupled)
    torch.testing.assert_close(pooled.key, F.normalize(pooled.k, dim=-1).flatten(1))
    rows = layout.query_index, layout.query_cu
    query, query_cu = router_query(h[nd:], contexts, *rows, coupled)
    unit = F.normalize(contexts.q[layout.query_index], dim=-1)
    grouped = unit.unflatten(1, (GROUPS, -1)).sum(2).flatten(1) / HEADS * DIM**-0.5
    torch.testing.assert_close(query, grouped)
    assert torch.equal(query_cu, layout.query_cu)
