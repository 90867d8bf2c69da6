"""Contexts in rows of the cache: they grow, end and move without touching one another."""

import pytest
import torch

from msa_train.memory.engine.interleave import Interleave, Request
from msa_train.memory.engine.model_runner import ModelRunner, prefill_pieces
from tests.memory.building import encode_in_memory
from tests.memory.tiny import tiny_documents, tiny_model, tiny_tokenizer

QUESTIONS = ("Rain?", "Who sleeps standing?", "東京", "What is the code of the harbour? " * 4)


@pytest.fixture(scope="module")
def prefill():
    view = encode_in_memory(tiny_model(), tiny_tokenizer(), tiny_documents())
    prompts = [Interleave(Request(question, view, "memory")).context for question in QUESTIONS]
    return prefill_pieces(tiny_model(), tiny_tokenizer(), view, prompts)


def test_a_step_over_free_rows_and_a_wider_window_is_the_same_step(prefill):
    """What a captured step does: rows and windows in few sizes, more than are in use."""
    plain, captured = (ModelRunner(tiny_model(), 8, 1024) for _ in range(2))

    def padded(tokens, fed):
        cache = captured._cache
        cache.begin_step(fed)
        given = torch.tensor([*tokens, *[7] * (8 - len(tokens))])
        with torch.inference_mode():
            hidden = tiny_model().decode(given, cache, (cache.entries, cache.tokens))
        captured.last[: len(tokens)] = hidden[: len(tokens)]

    captured._decode = padded
    for runner in (plain, captured):
        runner.admit(prefill, [0, 1, 2])
    for step in range(12):
        for runner in (plain, captured):
            runner.feed([[20 + step + row] for row in range(runner.count)])
        ours, theirs = (runner.last[: plain.count] for runner in (captured, plain))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        for runner in (plain, captured):
            if step == 4:
                runner.remove(0)
            if step == 7:
                runner.admit(prefill, [3])


def test_contexts_that_end_leave_the_others_as_they_are(prefill):
    alone = ModelRunner(tiny_model(), 1, 1024)
    alone.admit(prefill, [3])
    crowd = ModelRunner(tiny_model(), 4, 1024, preallocate=False)
    crowd.admit(prefill, [0, 1])
    crowd.admit(prefill, [2, 3])
    row = 3
    for step in range(9):
        alone.feed([[30 + step]])
        crowd.feed([[30 + step] if each == row else [50, 51] for each in range(crowd.count)])
        torch.testing.assert_close(crowd.last[row], alone.last[0], rtol=1e-5, atol=1e-5)
        if step in (2, 5):
            ends = 1 if step == 2 else 0
            row = ends if row == crowd.count - 1 else row  # the last one moves there
            crowd.remove(ends)
    assert crowd.room(row) == alone.room(0) and crowd.free == 2
