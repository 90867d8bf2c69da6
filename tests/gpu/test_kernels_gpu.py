"""The kernels on a CUDA device against the reference in float64: RMS error ratio per dtype."""

import pytest
import torch
from msa_kernels import (
    backend_report,
    chunk_mean,
    context_attention,
    document_attention,
    document_scores,
    reference,
)
from msa_kernels.ragged import cumulative

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.005, torch.float16: 0.002}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
LENGTHS = [70, 1, 0, 64, 200, 33]


def cu(lengths):
    return cumulative(torch.tensor(lengths)).cuda()


def error_ratio(actual, expected):
    expected = expected.double()
    return float((actual.double() - expected).norm() / expected.norm())


def both(run, truth, inputs, dtype):
    """Compares outputs and gradients of `run` in dtype with `truth` in float64."""
    inputs = [x.to(dtype).cuda().requires_grad_() for x in inputs]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    actual, expected = run(*inputs), truth(*wide)
    assert error_ratio(actual, expected) < TOLERANCE[dtype]
    weight = torch.randn_like(expected)
    found = torch.autograd.grad((actual * weight.to(actual.dtype)).sum(), inputs)
    for a, b in zip(found, torch.autograd.grad((expected * weight).sum(), wide), strict=True):
        assert error_ratio(a, b) < 2 * TOLERANCE[dtype]


def test_pooling_runs_on_triton():
    assert backend_report("cuda")["chunk_mean"]["backend"] == "triton"


@DTYPES
def test_chunk_mean(dtype):
    offsets, x = cu(LENGTHS), torch.randn(sum(LENGTHS), 8, 128)
    both(
        lambda x: chunk_mean(x, offsets, 64),
        lambda x: reference.chunk_mean(x, offsets, 64),
        [x],
        dtype,
    )


def test_chunk_mean_past_32_bit_offsets():
    rows, width = 2**21 + 64, 1024
    if torch.cuda.mem_get_info()[0] < 3 * rows * width * 2:
        pytest.skip("needs 13 GB of free GPU memory")
    x = torch.zeros(rows, width, dtype=torch.bfloat16, device="cuda")
    x[-64:] = 1
    mean = chunk_mean(x, cu([rows]), 64)
    assert bool((mean[-1] == 1).all()) and not bool(mean[:-1].any())


@DTYPES
def test_document_scores(dtype):
    query, keys = torch.randn(20, 256), torch.randn(9, 256)
    rest = cu([3, 0, 4, 2]), torch.tensor([0, 1, 0], device="cuda"), cu([2, 2])
    query_cu = cu([12, 0, 8])
    query, keys = (x.to(dtype).cuda() for x in (query, keys))
    scores = document_scores(query, query_cu, keys, *rest)
    expected = reference.document_scores(query.double(), query_cu, keys.double(), *rest)
    finite = expected.isfinite()
    assert torch.equal(finite, scores.isfinite())
    assert error_ratio(scores[finite], expected[finite]) < 1e-5


@DTYPES
def test_attention(dtype):
    offsets = cu(LENGTHS)
    q, k, v = (torch.randn(sum(LENGTHS), heads, 64) for heads in (8, 2, 2))
    pooled = [torch.randn(12, 2, 64) for _ in range(2)]
    index, index_cu = torch.tensor([0, 3, 4, 11, 3], device="cuda"), cu([2, 0, 0, 1, 2, 0])
    head = torch.full((len(LENGTHS),), 3, device="cuda")
    both(
        lambda *x: document_attention(*x, offsets, 0.125),
        lambda *x: reference.document_attention(*x, offsets, 0.125),
        [q, k, v],
        dtype,
    )

    def attend(function):
        def run(q, k, v, pooled_k, pooled_v, bias):
            states = (q, k, v, offsets, offsets, pooled_k, pooled_v)
            return function(*states, index, index_cu, bias, head, 0.125)

        return run

    inputs = [q, k, v, *pooled, torch.randn(5)]
    both(attend(context_attention), attend(reference.context_attention), inputs, dtype)
