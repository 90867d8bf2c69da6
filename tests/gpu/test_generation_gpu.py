"""Captured decode steps on a GPU: the states of the plain ones."""

import copy
import threading

import pytest
import torch

from msa_train.memory.engine.interleave import Interleave, Request
from msa_train.memory.engine.model_runner import ModelRunner, prefill_pieces
from msa_train.memory.planner.plan import parameters
from tests.memory.building import encode_in_memory
from tests.memory.tiny import tiny_documents, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.gpu


def test_captured_steps_equal_plain_ones(cuda):
    model = tiny_model().to(cuda)
    try:
        view = encode_in_memory(model, tiny_tokenizer(), tiny_documents())
        asked = ("Rain?", "Who sleeps?", "東京", "x", "?")
        prompts = [Interleave(Request(question, view, "memory")).context for question in asked]
        prefill = prefill_pieces(model, tiny_tokenizer(), view, prompts)
        captured, plain = ModelRunner(model, 8, 256), ModelRunner(model, 8, 256)
        plain._graphs = None
        for contexts in (captured, plain):
            contexts.admit(prefill, range(5))
        for step in range(100):  # past several windows
            for contexts in (captured, plain):
                contexts.feed([[20 + (step + row) % 50] for row in range(contexts.count)])
            assert torch.allclose(captured.last, plain.last, rtol=1e-3, atol=1e-4)
            if step in (30, 60):
                captured.remove(1)
                plain.remove(1)
        assert captured._graphs._captured
    finally:
        model.to("cpu")


def test_a_server_captures_its_steps_before_anybody_asks(cuda):
    """From one pool; those that follow are replays. Memory is what the plan says, in blocks."""
    before = torch.cuda.memory_allocated(cuda)
    model = copy.deepcopy(tiny_model()).to(cuda, torch.bfloat16)
    runner = ModelRunner(model, 8, 256)
    held = parameters(model.config) * 2 + runner.cache_bytes
    tensors = len(list(model.parameters())) + 2 * model.config.layers + 8
    taken = torch.cuda.memory_allocated(cuda) - before
    assert held <= taken <= held + 512 * tensors + 2 * runner.last.nbytes
    assert runner.capture() == 2 * 3  # 4 and 8 rows, 64 to 256 own tokens
    view = encode_in_memory(model, tiny_tokenizer(), tiny_documents())
    prompts = [Interleave(Request("Rain?", view, "memory")).context] * 5
    runner.admit(prefill_pieces(model, tiny_tokenizer(), view, prompts), range(5))
    for step in range(60):
        runner.feed([[20 + step]] * runner.count)
        if step == 30:
            runner.remove(0)
            runner.remove(0)
    assert len(runner._graphs._captured) == 2 * 3 and runner.last[:3].isfinite().all()


def test_steps_are_captured_while_another_thread_asks_for_memory(cuda):
    """As the thread does that fetches documents ahead: an order to the driver, not the cache."""
    model, ended = tiny_model().to(cuda), threading.Event()

    def fetch():
        stream = torch.cuda.Stream()
        while not ended.is_set():
            with torch.cuda.stream(stream):
                torch.ones(1 << 22).to("cuda")
            stream.synchronize()
            torch.cuda.empty_cache()

    thread = threading.Thread(target=fetch)
    thread.start()
    try:
        view = encode_in_memory(model, tiny_tokenizer(), tiny_documents())
        prompts = [Interleave(Request("Rain?", view, "memory")).context] * 5
        prefill = prefill_pieces(model, tiny_tokenizer(), view, prompts)
        for count in range(1, 6):
            contexts = ModelRunner(model, 8, 256)
            contexts.admit(prefill, range(count))
            for step in range(40):
                contexts.feed([[20 + step]] * count)
            assert contexts._graphs._captured and contexts.last[:count].isfinite().all()
    finally:
        ended.set()
        thread.join()
        model.to("cpu")
