"""What operations of msa_kernels cost the host on CUDA."""

import pytest
import torch
from msa_kernels import (
    KernelError,
    chunk_scores,
    context_attention,
    cumulative,
    document_attention,
    document_scores,
    norm_rope,
    quantise,
    quantised_document_scores,
)

from tests.pretend.cuda import counting, pretended_cuda

TOKENS, CHUNKS, WIDTH, HEADS = 40, 64, 32, 2


@pytest.fixture
def cuda():
    with pretended_cuda() as device:
        yield device


def offsets(device, *lengths):
    return cumulative(torch.tensor(lengths)).to(device)


def states(device, rows, *shape, learns=False, dtype=torch.bfloat16):
    return torch.randn(rows, *shape, dtype=dtype).to(device).requires_grad_(learns)


class Problem:
    """Two contexts of 20 tokens, a bank of 16 documents of 4 chunks."""

    def __init__(self, device, learns=False):
        self.query = states(device, TOKENS, WIDTH, learns=learns)
        self.keys = states(device, CHUNKS, WIDTH, learns=learns)
        self.query_cu, self.chunk_cu = offsets(device, 20, 20), offsets(device, *[4] * 16)
        self.bank = torch.zeros(2, dtype=torch.long).to(device), offsets(device, 16)
        self.index, self.index_cu = torch.arange(12).to(device), offsets(device, 8, 4)
        self.q, self.k, self.v = (
            states(device, TOKENS, heads, 16, learns=learns) for heads in (4, 2, 2)
        )
        self.pooled = states(device, CHUNKS, 2, 16, learns=learns)

    def scores(self):
        return document_scores(self.query, self.query_cu, self.keys, self.chunk_cu, *self.bank)

    def of_chunks(self):
        return chunk_scores(self.query, self.query_cu, self.keys, self.index, self.index_cu)

    def attend(self):
        chosen = self.index, self.index_cu, None, None
        cus = self.query_cu, self.query_cu
        return context_attention(
            self.q, self.k, self.v, *cus, self.pooled, self.pooled, *chosen, 0.25
        )

    def attend_themselves(self):
        return document_attention(self.q, self.k, self.v, self.query_cu, 0.25)

    def normed(self):
        weight = torch.ones(16, device=self.q.device)
        tables = torch.ones(TOKENS, 8, device=self.q.device)
        return norm_rope(self.q, self.k, weight, weight, tables, tables, 1e-6)[0]


# Most launches of the first call, and of backward.
BUDGETS = [
    ("scores", 7, 19),
    ("of_chunks", 1, 14),
    ("attend", 3, 20),
    ("attend_themselves", 4, 14),
    ("normed", 3, 10),
]


@pytest.mark.parametrize(("name", "forward", "backward"), BUDGETS)
def test_no_operation_waits_for_the_device(cuda, name, forward, backward):
    problem = Problem(cuda, learns=True)
    run = getattr(problem, name)
    with counting() as counts:
        out = run()
    assert counts.syncs == counts.copies == 0 and counts.launches <= forward, counts
    grad = torch.ones_like(out)
    with counting() as counts:
        out.backward(grad)
    assert counts.syncs == counts.copies == 0 and counts.launches <= backward, counts


def test_the_table_of_documents_is_made_once_for_the_same_offsets(cuda):
    problem = Problem(cuda)
    with counting() as first:
        problem.scores()
    with counting() as second:
        problem.scores()
    assert second.launches == 3, second  # nothing yet, maxima, scores
    assert first.launches > second.launches
    problem.chunk_cu.add_(0)
    with counting() as changed:
        problem.scores()
    assert changed.launches == first.launches, changed


def test_scores_of_8_bit_keys_wait_for_nothing(cuda):
    problem = Problem(cuda)
    small = quantise(problem.keys, HEADS, "int8")
    query = states(cuda, 1, WIDTH, dtype=torch.float32), offsets(cuda, 1)
    quantised_document_scores(*query, small, problem.chunk_cu)
    with counting() as counts:
        quantised_document_scores(*query, small, problem.chunk_cu)
    assert counts.syncs == counts.copies == 0 and counts.launches <= 8, counts


def test_fp8_is_refused_on_a_card_without_it(cuda, monkeypatch):
    problem = Problem(cuda)
    small = quantise(problem.keys, HEADS, "fp8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(KernelError, match=r"capability is 8\.6; fp8 begins with 8\.9: use int8"):
        quantise(problem.keys, HEADS, "fp8")
    with pytest.raises(KernelError, match="keys are fp8 on cuda:0"):
        quantised_document_scores(problem.query, problem.query_cu, small, problem.chunk_cu)
    quantise(problem.keys, HEADS, "int8")
