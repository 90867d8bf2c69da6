"""Static buffers: a step over them equals msa_kernels' attention of the same chunks and tokens."""

import pytest
import torch
from msa_kernels import context_attention

from msa_train.model import kv_cache as module
from msa_train.model.attention import SelectedChunks
from msa_train.model.kv_cache import KVCache, Prefill
from msa_train.model.router import Routing
from tests.batches import tiny_config

GROUPS, WIDTH = 2, 8
CHUNKS = 90


def random_prefill(config, lengths, counts, gate=True, seed=0):
    """A Prefill of random states; counts: chunks that each context reads, in every layer."""
    random = torch.Generator().manual_seed(seed)

    def states(rows):
        return torch.randn(rows, GROUPS, WIDTH, generator=random)

    cu = torch.tensor([0, *lengths]).cumsum(0)
    index_cu = torch.tensor([0, *counts]).cumsum(0)
    selected = {}
    for layer in config.router_layers:
        index = torch.randint(0, CHUNKS, (int(index_cu[-1]),), generator=random)
        none = torch.zeros(len(lengths), 0, dtype=torch.int64)
        routing = Routing(None, None, none, none, index, index_cu, None)
        bias = -torch.rand(len(index), generator=random) * 9 if gate else None
        selected[layer] = SelectedChunks(routing, states(CHUNKS), states(CHUNKS), bias)
    kept = [[states(int(cu[-1])) for _ in range(config.layers)] for _ in range(2)]
    return Prefill(torch.zeros(int(cu[-1]), config.hidden), cu, cu.diff() + 3, *kept, selected)


def expected(config, prefill, layer, context, k, v, q):
    """Attention of the last tokens q of one context whose own keys are k, v."""
    cus = torch.tensor([0, len(q)]), torch.tensor([0, len(k)])
    reading = prefill.selected.get(layer)
    if reading is None:
        nothing = torch.zeros(0, dtype=torch.int64)
        memory = k[:0], v[:0], nothing, torch.zeros(2, dtype=torch.int64), None
    else:
        span = slice(*reading.routing.index_cu[context : context + 2].tolist())
        bias = None if reading.bias is None else reading.bias[span]
        index = reading.routing.chunk_index[span]
        memory = reading.k, reading.v, index, torch.tensor([0, len(index)]), bias
    return context_attention(q, k, v, *cus, *memory, None, config.head_dim**-0.5)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("tokens", [None, 4])  # all allocated at once, or grown
def test_steps_over_buffers_equal_the_kernels(tokens, gate):
    config = tiny_config()
    lengths, counts = [5, 9, 1, 7], [70, 0, 3, 12]
    prefill = random_prefill(config, lengths, counts, gate)
    cache = KVCache(config, 6, 30, prefill.hidden, tokens)
    cache.admit(prefill, [0, 1], [0, 1])
    cache.admit(prefill, [3, 2], [2, 3])  # another order than theirs
    order, random = [0, 1, 3, 2], torch.Generator().manual_seed(1)
    own = {
        (layer, c): [
            kept[layer][prefill.ctx_cu[c] : prefill.ctx_cu[c + 1]]
            for kept in (prefill.keys, prefill.values)
        ]
        for layer in range(config.layers)
        for c in order
    }

    def fed(layer, context, k, v):
        own[layer, context] = [
            torch.cat([old, new]) for old, new in zip(own[layer, context], (k, v), strict=True)
        ]

    for step in range(3):
        feeds = [step != 1 or row != 2 for row in range(len(order))]  # one waits once
        window = cache.begin_step(feeds)
        row, place = torch.arange(len(order)), cache.length[: len(order)].clone()
        cache.unmask(row, place)
        for layer in range(config.layers):
            q = torch.randn(len(order), config.heads, WIDTH, generator=random)
            k, v = (torch.randn(len(order), GROUPS, WIDTH, generator=random) for _ in range(2))
            cache.write(layer, row, place, k, v)
            ours = cache.attend(layer, q, window)
            for r, context in enumerate(order):
                if feeds[r]:
                    fed(layer, context, k[r : r + 1], v[r : r + 1])
                    states = *own[layer, context], q[r : r + 1]
                    theirs = expected(config, prefill, layer, context, *states)
                    torch.testing.assert_close(ours[r : r + 1], theirs, rtol=1e-5, atol=1e-6)
        cache.end_step(len(order))
        if step == 1:  # the second context ends, the last one takes its place
            cache.move(3, 1)
            order = [0, 2, 3]
    row, place, position = cache.begin_several([1], [4])
    assert row.tolist() == [1] * 4 and place.tolist() == [4, 5, 6, 7]
    assert position.tolist() == (place + 3).tolist()  # as random_prefill counts them
    cache.unmask(row, place)
    for layer in range(config.layers):
        q = torch.randn(4, config.heads, WIDTH, generator=random)
        k, v = (torch.randn(4, GROUPS, WIDTH, generator=random) for _ in range(2))
        cache.write(layer, row, place, k, v)
        fed(layer, 2, k, v)
        theirs = expected(config, prefill, layer, 2, *own[layer, 2], q)
        torch.testing.assert_close(cache.attend_several(layer, q, 1), theirs, rtol=1e-5, atol=1e-6)
    assert cache.length.tolist() == [8, 8, 9, 0, 0, 0] and cache.lengths == cache.length.tolist()


def test_a_step_touches_no_buffer_but_in_place():
    config = tiny_config()
    prefill = random_prefill(config, [5, 9], [4, 0])
    cache = KVCache(config, 3, 32, prefill.hidden)
    cache.admit(prefill, [0, 1], [0, 1])
    kept = [*cache.keys, *cache.values, *cache.masks]
    addresses = [each.data_ptr() for each in kept]
    for _ in range(10):
        cache.begin_step([True, True])
        cache.end_step(2)
    assert addresses == [each.data_ptr() for each in [*cache.keys, *cache.values, *cache.masks]]


def test_a_free_row_has_no_influence_and_stays_finite():
    config = tiny_config()
    prefill = random_prefill(config, [5, 9], [4, 2])
    cache = KVCache(config, 3, 32, prefill.hidden)
    cache.admit(prefill, [0, 1], [0, 1])
    cache.release(1)
    window = cache.begin_step([True])
    row, place = torch.arange(3), cache.length.clone()  # a captured step runs over free rows too
    cache.unmask(row, place)
    for layer in range(config.layers):
        q = torch.randn(3, config.heads, WIDTH)
        k, v = torch.randn(2, 3, GROUPS, WIDTH)
        cache.write(layer, row, place, k, v)
        assert cache.attend(layer, q, window).isfinite().all()


def test_room_that_nobody_uses_takes_no_memory():
    """Of a gigabyte of buffers, what lies in memory is what was written, also after growing."""

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    config = tiny_config()
    prefill = random_prefill(config, [5, 9], [4, 90])
    before = resident()
    cache = KVCache(config, 64, 32768, prefill.hidden)
    cache.admit(prefill, [0, 1], [0, 1])  # more chunks than there was room for
    assert sum(x.nbytes for x in (*cache.keys, *cache.values)) > 1e9
    assert resident() - before < 2e8


@pytest.mark.parametrize("fails", range(8))
def test_where_memory_runs_out_the_rows_are_what_they_were(fails, monkeypatch):
    config = tiny_config()
    assert config.layers == 4  # keys and values of each are allocated: eight times
    prefill = random_prefill(config, [5, 9], [4, 2])
    cache = KVCache(config, 3, 32, prefill.hidden, 16)
    cache.admit(prefill, [0], [0])

    def read():
        gen = torch.Generator().manual_seed(3)
        q = torch.randn(1, config.heads, WIDTH, generator=gen)
        return [cache.attend(layer, q, (4, 5)) for layer in range(config.layers)]

    before, version, calls = read(), cache.version, iter(range(8))

    def zeros(shape, like, real=module._zeros):
        if next(calls) == fails:
            raise torch.OutOfMemoryError("no memory")
        return real(shape, like)

    monkeypatch.setattr(module, "_zeros", zeros)
    greedy = random_prefill(config, [20], [70])
    with pytest.raises(torch.OutOfMemoryError):
        cache.admit(greedy, [0], [1])
    assert all(map(torch.equal, read(), before))
    assert cache.version > version or not fails  # other buffers: captured steps are void
    monkeypatch.undo()
    cache.admit(greedy, [0], [1])
    assert all(map(torch.equal, read(), before))


def test_rows_take_the_contexts_of_others():
    """As beams are chosen: each row attends to what the row it came from attended to."""
    config = tiny_config()
    prefill = random_prefill(config, [5, 9, 2], [4, 2, 0])
    cache = KVCache(config, 3, 32, prefill.hidden)
    cache.admit(prefill, [0, 1, 2], [0, 1, 2])
    window, query = (4, 9), torch.randn(3, config.heads, WIDTH)
    chosen = [2, 0, 0]
    before = [cache.attend(layer, query[[1, 2, 0]], window) for layer in range(config.layers)]
    queries = torch.empty_like(query)
    for row, source in enumerate(chosen):  # the query that the row's source was asked
        queries[row] = query[[1, 2, 0]][source]
    cache.reorder(chosen)
    assert cache.lengths == [2, 5, 5] and cache.chunks == [0, 4, 4]
    assert cache.length.tolist() == [2, 5, 5] and cache.position.tolist() == [5, 8, 8]
    for layer in range(config.layers):
        assert torch.equal(cache.attend(layer, queries, window), before[layer][chosen])
