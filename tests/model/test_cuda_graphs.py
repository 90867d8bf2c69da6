"""Which steps are captured, and when again. What a capture computes: tests/gpu."""

import pytest
import torch

from msa_train.model.cuda_graphs import DecodeGraphs
from msa_train.model.kv_cache import KVCache
from tests.batches import decoder_of, tiny_config


class Replayed:
    """In place of a CUDA graph: computes the step when it is replayed."""

    def __init__(self, graphs, *size):
        self.replay = lambda: graphs._step(*size)


@pytest.fixture
def graphs(monkeypatch):
    def capture(self, rows, window):
        captured.append((rows, window))
        return Replayed(self, rows, window)

    captured = []
    monkeypatch.setattr(DecodeGraphs, "_capture", capture)
    config = tiny_config()
    model = decoder_of(config)
    cache = KVCache(config, 12, 32, model.model.embed_tokens.weight, tokens=8)
    made = DecodeGraphs(model, cache)
    made.captured = captured
    return made


@torch.inference_mode()
def step(graphs, tokens):
    window = graphs._cache.begin_step([True] * len(tokens))
    return graphs.decode(torch.tensor(tokens), (0, 8)), window


def test_rows_are_rounded_up_and_each_size_is_captured_once(graphs):
    for tokens in ([5], [5, 6], [5, 6, 7, 8, 9], [1, 2, 3], list(range(12))):
        hidden, _ = step(graphs, tokens)
        assert hidden.shape == (len(tokens), graphs._model.config.hidden)
    assert [rows for rows, _ in graphs.captured] == [4, 8, 12]  # never more than there are


def test_a_step_over_more_rows_is_that_of_the_rows_asked_for(graphs):
    config = tiny_config()
    plain = KVCache(config, 12, 32, graphs._model.model.embed_tokens.weight, tokens=8)
    for tokens in ([5, 6], [7, 8], [9, 10]):
        ours, _ = step(graphs, tokens)
        with torch.inference_mode():
            plain.begin_step([True, True])
            theirs = graphs._model.decode(torch.tensor(tokens), plain, (0, 8))
        torch.testing.assert_close(ours, theirs)
    assert graphs._cache.length.tolist() == plain.length.tolist() == [3, 3, *[0] * 10]


def test_a_cache_that_has_grown_is_captured_anew(graphs):
    step(graphs, [5])
    graphs._cache._reserve(0, 9)
    step(graphs, [5])
    step(graphs, [5])
    assert len(graphs.captured) == 2


def test_what_a_server_needs_is_captured_at_its_start(graphs):
    """Every size that steps of 1 to 12 rows, of any length, ask for; nothing is captured then."""
    cache = graphs._cache
    cache._reserve(0, 32)
    assert graphs.capture_all() == len(graphs.captured) == 3 * len(cache.windows())
    assert graphs.captured[0] == (12, (cache.entries, cache.tokens))  # sizes the pool
    for rows in range(1, 13):
        cache.chunks[:rows], cache.lengths[:rows] = [rows] * rows, [2 * rows] * rows
        window = cache.begin_step([True] * rows)
        found = [n for n in cache.windows() if n[0] >= window[0] and n[1] >= window[1]]
        graphs.decode(torch.zeros(rows, dtype=torch.int64), found[-1])
    assert len(graphs.captured) == 3 * len(cache.windows())
