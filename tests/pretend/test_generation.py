"""Encoding, prefilling and writing on a GPU: how often the host waits, and what is launched."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from msa_kernels import chunk_offsets

from msa_train.memory.bank.encode import encode_documents
from msa_train.memory.engine import sampling as sampling_module
from msa_train.memory.engine.interleave import Interleave, Request
from msa_train.memory.engine.model_runner import ModelRunner, prefill_pieces
from msa_train.memory.engine.sampling import Draws, Sampling, choose_tokens
from msa_train.model.cuda_graphs import DecodeGraphs
from msa_train.model.decoder import PooledMemory
from msa_train.model.transfer import Downloads, sent, uploaded
from tests.memory.building import encode_in_memory
from tests.memory.tiny import tiny_documents, tiny_model, tiny_tokenizer
from tests.pretend.cuda import counting, on_device, pretended_cuda

QUESTIONS = ("Rain?", "Who sleeps standing?", "東京", "What is the code of the harbour? " * 4)
LAYERS, READING = tiny_model().config.layers, len(tiny_model().config.reading_layers)


@pytest.fixture(scope="module")
def prompts():
    view = encode_in_memory(tiny_model(), tiny_tokenizer(), tiny_documents())
    return [Interleave(Request(question, view, "memory")).context for question in QUESTIONS]


@pytest.fixture
def cuda():
    with pretended_cuda() as device, torch.inference_mode():
        yield device


@pytest.fixture
def model(cuda):
    return on_device(copy.deepcopy(tiny_model()))


@pytest.fixture(scope="module")
def batch():
    [batch] = encode_documents(tiny_model(), tiny_tokenizer(), tiny_documents())
    return batch


@pytest.fixture
def memory(batch, model):
    """Of the plainest kind, on the model's device: what a search costs is not counted here."""
    cu = chunk_offsets(torch.tensor([0, *batch.tokens.tolist()]).cumsum(0), 4)
    pooled = {n: states.map(lambda x: x.to(model.device)) for n, states in batch.pooled.items()}
    return PooledMemory(pooled, cu.to(model.device), model.config.router)


@pytest.fixture
def prefill(prompts, memory, model):
    return prefill_pieces(model, tiny_tokenizer(), memory, prompts)


@pytest.fixture
def runner(model, prefill):
    made = ModelRunner(model, 8, 512)
    made._graphs = None  # nothing can be captured here: the step itself is counted
    made.admit(prefill, range(4))
    return made


def test_arrays_are_sent_and_states_fetched_without_a_wait(cuda):
    with counting() as counts:
        one, two = uploaded([[1, 2], range(3)], cuda)
        x = sent(torch.ones(3), cuda)
        coming = Downloads(cuda).begin([x, one], torch.float16)
    assert (counts.syncs, counts.copies) == (0, 3), counts
    with counting() as counts:
        there = coming.result()
    assert counts.syncs == 1 and two.tolist() == [0, 1, 2]
    assert [each.tolist() for each in there] == [[1, 1, 1], [1, 2]]
    assert all(each.dtype == torch.float16 for each in there)


def test_contexts_are_admitted_with_one_wait(model, prefill):
    runner = ModelRunner(model, 8, 512)
    for contexts in ([0, 1, 2], [3]):
        with counting() as counts:
            runner.admit(prefill, contexts)
        assert counts.syncs == 1 and counts.copies == 3, counts
        assert counts.launches <= 10 + 6 * LAYERS + 8 * READING, counts


@pytest.mark.parametrize("all_of_them", [True, False])
def test_a_step_waits_once_for_the_tokens_of_all(runner, all_of_them):
    """Whatever is drawn, and how; beside the layers, what a step launches does not grow."""
    draws = [Draws(Sampling(0.8, 0.9, 1)), Draws(Sampling(1.0, 1.0, 2)), Draws(Sampling()),
             Draws(Sampling(0.5, 0.5, 3))]  # fmt: skip
    with counting() as counts:
        tokens = runner.choose([each.next() for each in draws], tiny_tokenizer().vocab_size)
    assert counts.syncs == 1, counts
    chosen = counts.launches
    with counting() as counts:
        runner.feed([[token] if all_of_them or row else [] for row, token in enumerate(tokens)])
    assert counts.syncs == 0 and counts.copies == 2, counts
    assert chosen <= 36 and counts.launches <= 16 + 33 * LAYERS, counts


def test_tokens_are_drawn_as_on_a_cpu(cuda, monkeypatch):
    """All rows at once, and again where the likeliest tokens hold too little."""
    monkeypatch.setattr(sampling_module, "_LIKELIEST", 16)
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0)) * 3
    flat = logits.clone()
    flat[2] = 0  # 16 of 300 equal ones hold little
    settings = [Sampling(0.3 + row, p, row) for row, p in enumerate((0.9, 1.0, 0.9, 0.2, 1.0, 1.0))]
    for given, waits in ((logits[[0, 1, 3, 3, 4, 5]] * 9, 1), (flat, 2)):
        draws = [Draws(replace(each, temperature=1.0)).next() for each in settings]
        with counting() as counts:
            found = choose_tokens(given.to(cuda, non_blocking=True), draws)
        assert counts.syncs == waits, counts
        assert found == choose_tokens(given, draws)


def test_greedy_rows_take_one_operation(runner):
    with counting() as counts:
        runner.choose([None] * 4, tiny_tokenizer().vocab_size)
    assert (counts.syncs, counts.copies) == (1, 1) and counts.launches <= 4, counts


def test_text_is_appended_to_several_rows_without_a_wait(runner):
    with counting() as counts:
        runner.feed([[5, 6, 7], [8], [5, 6], []])
    assert counts.syncs == 0 and counts.copies == 4, counts


def test_a_context_that_ends_is_removed_without_a_wait(runner):
    for row in (0, 1, 1, 0):
        with counting() as counts:
            runner.remove(row)
        assert (counts.syncs, counts.copies) == (0, 0), counts
        assert counts.launches <= 7 + 2 * LAYERS, counts


def test_steps_are_replayed_on_the_models_device(model, prefill, monkeypatch):
    """Captured at the start; a step is then a replay, its tokens and who is active sent before."""
    entered, sizes = [], []

    class Replayed:
        def __init__(self, graphs, *size):
            self.replay = lambda: sizes.append(size)

    monkeypatch.setattr(
        torch.cuda, "device", lambda device: entered.append(device) or nullcontext()
    )
    monkeypatch.setattr(DecodeGraphs, "_capture", lambda *given: Replayed(*given))
    runner = ModelRunner(model, 8, 512)
    assert runner.capture() == 2 * 4  # 4 and 8 rows, 64 to 512 own tokens
    runner.admit(prefill, range(4))
    with counting() as counts:
        runner.feed([[5]] * 4)
    assert (counts.syncs, counts.copies) == (0, 2) and counts.launches <= 1, counts
    assert entered == [model.device] and len(sizes) == 1 and sizes[0][0] == 4


def test_batches_are_encoded_while_the_one_before_is_fetched(model):
    """No wait for a document, and one for a batch: when the next one has been launched."""
    documents = tiny_documents()
    plain = list(encode_documents(tiny_model(), tiny_tokenizer(), documents, 60, torch.float16))
    with counting() as counts:
        found = list(encode_documents(model, tiny_tokenizer(), documents, 60, torch.float16))
    assert len(found) == len(plain) > 2
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.documents == theirs.documents and torch.equal(ours.chunks, theirs.chunks)
        for layer, states in theirs.pooled.items():
            for name in ("k", "v", "key"):
                mine = getattr(ours.pooled[layer], name)
                torch.testing.assert_close(mine, getattr(states, name), rtol=1e-3, atol=1e-3)
    assert counts.copies == 2 * len(found), counts
    assert counts.syncs == len(found), counts
    log = list(enumerate(counts.log))
    begun = [at for at, x in log if x.kind == "copy" and "to the host" in x.what]
    waited = [at for at, x in log if x.kind == "sync"]
    # All of a batch, its copy being the last of it, is launched before the one before is waited
    # for. Its kernels wait for no copy, which has a stream of its own; the copy waits for them.
    assert all(later < wait for later, wait in zip(begun[1:], waited, strict=False))
    assert all(wait < later for wait, later in zip(waited, begun[2:], strict=False))
    [copying] = {counts.log[at].stream for at in begun}
    [computing] = {x.stream for _, x in log if x.kind == "launch"}
    assert copying is not computing
    assert {x.stream for _, x in log if x.kind in ("wait", "sync")} == {copying}
    # And no batch is given the memory of states that are still being copied.
    assert [x.stream for _, x in log if x.kind == "keep"] == [copying] * len(found)


def test_what_is_fetched_lies_in_two_buffers(cuda, monkeypatch):
    """However many there are; each download has its own numbers, and may be asked for again."""
    made, empty = [], torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *size, **given: made.append(given) or empty(*size, **given)
    )
    downloads, coming, found = Downloads(cuda), [], []
    for number in range(5):
        coming.append(downloads.begin([torch.full((3,), number, device=cuda)], torch.float32))
        if number:
            found += coming[number - 1].result()
    found += coming[4].result()
    assert [x.tolist() for x in found] == [[number] * 3 for number in range(5)]
    assert coming[0].result()[0] is found[0]
    assert sum(bool(given.get("pin_memory")) for given in made) == 2
    larger = downloads.begin([torch.ones(99, device=cuda)], torch.float32)
    assert torch.equal(larger.result()[0], torch.ones(99))


def test_a_prefill_waits_once(prompts, memory, model):
    """For which of its tokens ask, however many contexts and layers there are; the rest is the
    memory's, whose search is done beforehand here."""
    for asked in (prompts[:1], prompts):
        searched = Searched(memory)
        expected = prefill_pieces(model, tiny_tokenizer(), searched, asked)
        searched.done = True
        with counting() as counts:
            found = prefill_pieces(model, tiny_tokenizer(), searched, asked)
        assert counts.syncs == 1 and counts.copies == 1, counts
        assert torch.equal(found.hidden.cpu(), expected.hidden.cpu())


class Searched:
    """A memory that gives again what was found in each layer."""

    def __init__(self, memory):
        self.memory, self.found, self.done = memory, {}, False

    def search(self, layer, *query):
        if not self.done:
            self.found[layer] = self.memory.search(layer, *query)
        return self.found[layer]
