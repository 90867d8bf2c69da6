"""The kernels on a CUDA device against the reference in float64: RMS error ratio per dtype."""

import pytest
import torch
from msa_kernels import (
    backend_report,
    chunk_mean,
    chunk_scores,
    context_attention,
    document_attention,
    document_scores,
    norm_rope,
    quantise,
    quantised_document_scores,
    reference,
)
from msa_kernels.dispatch import TRITON_OPERATIONS
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


def joined(out):
    return torch.cat([x.flatten() for x in out]) if isinstance(out, tuple) else out


def both(run, truth, inputs, dtype):
    """Compares outputs and gradients of `run` in dtype with `truth` in float64.

    Gradients may be off by twice as much: two roundings of the same kind meet in them.
    """
    inputs = [x.to(dtype).cuda().requires_grad_() for x in inputs]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    actual, expected = joined(run(*inputs)), joined(truth(*wide))
    assert error_ratio(actual, expected) < TOLERANCE[dtype]
    weight = torch.randn_like(expected)
    found = torch.autograd.grad((actual * weight.to(actual.dtype)).sum(), inputs)
    again = torch.autograd.grad((joined(run(*inputs)) * weight.to(actual.dtype)).sum(), inputs)
    for a, b in zip(found, torch.autograd.grad((expected * weight).sum(), wide), strict=True):
        assert error_ratio(a, b) < 2 * TOLERANCE[dtype]
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True)), "not deterministic"


def test_everything_with_a_kernel_runs_on_it():
    report = backend_report("cuda")
    assert {report[name]["backend"] for name in TRITON_OPERATIONS} == {"triton"}


@DTYPES
def test_pooling(dtype):
    offsets = cu(LENGTHS)
    both(
        lambda x: chunk_mean(x, offsets, 64),
        lambda x: reference.chunk_mean(x, offsets, 64),
        [torch.randn(sum(LENGTHS), 8, 128)],
        dtype,
    )


def test_pooling_past_32_bit_offsets():
    rows, width = 2**21 + 64, 1024
    if torch.cuda.mem_get_info()[0] < 3 * rows * width * 2:
        pytest.skip("needs 13 GB of free GPU memory")
    x = torch.zeros(rows, width, dtype=torch.bfloat16, device="cuda")
    x[-64:] = 1
    mean = chunk_mean(x, cu([rows]), 64)
    assert bool((mean[-1] == 1).all()) and not bool(mean[:-1].any())


def routed(dtype, tokens=(12, 0, 8), width=256):
    query, keys = torch.randn(sum(tokens), width), torch.randn(9, width)
    rest = cu([3, 0, 4, 2]), torch.tensor([0, 1, 0], device="cuda"), cu([2, 2])
    return query.to(dtype).cuda(), cu(tokens), keys.to(dtype).cuda(), *rest


@DTYPES
def test_scores(dtype):
    query, query_cu, keys, *rest = routed(dtype)
    index, index_cu = torch.tensor([0, 1, 2, 8, 7], device="cuda"), cu([3, 0, 2])
    for run, truth, given in (
        (document_scores, reference.document_scores, rest),
        (chunk_scores, reference.chunk_scores, (index, index_cu)),
    ):
        inputs = [query.clone().requires_grad_(), keys.clone().requires_grad_()]
        wide = [x.detach().double().requires_grad_() for x in inputs]
        scores = run(inputs[0], query_cu, inputs[1], *given)
        expected = truth(wide[0], query_cu, wide[1], *given)
        finite = expected.isfinite()
        assert torch.equal(finite, scores.isfinite())
        assert error_ratio(scores[finite], expected[finite]) < 1e-5
        found = torch.autograd.grad(scores[finite].sum(), inputs)
        for a, b in zip(found, torch.autograd.grad(expected[finite].sum(), wide), strict=True):
            assert error_ratio(a, b) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_float32_query_keeps_its_precision_beside_narrow_keys(dtype):
    query, query_cu, keys, *rest = routed(torch.float32)
    keys = keys.to(dtype)
    scores = document_scores(query, query_cu, keys, *rest)
    expected = reference.document_scores(query.double(), query_cu, keys.double(), *rest)
    finite = expected.isfinite()
    assert error_ratio(scores[finite], expected[finite]) < 1e-4


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_scores_of_quantised_keys(form):
    torch.manual_seed(0)
    keys = torch.nn.functional.normalize(torch.randn(20_000, 8, 128), dim=-1).flatten(1).cuda()
    query, query_cu = torch.randn(40, 1024, device="cuda") / 32, cu([30, 10])
    chunk_cu = cu([1, 3, 2, 4] * 2000)
    bank = torch.zeros(2, dtype=torch.int64, device="cuda"), cu([8000])
    small = quantise(keys, 8, form)
    moved = (small.dequantised() - keys).double().norm(dim=1)
    assert (moved <= small.error).all()
    found = quantised_document_scores(query, query_cu, small, chunk_cu)
    wide = small.dequantised().double()
    expected = document_scores(query.double(), query_cu, wide, chunk_cu, *bank)
    assert error_ratio(found, expected) < 1e-4, "a query in two narrow parts has 16 bits"


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


@DTYPES
def test_norm_rope(dtype):
    q, k, weights = torch.randn(70, 8, 64), torch.randn(70, 2, 64), torch.randn(2, 64)
    angle = torch.rand(70, 32, device="cuda") * 100
    tables = angle.cos(), angle.sin()
    both(
        lambda *x: norm_rope(*x, *tables, 1e-6),
        lambda *x: reference.norm_rope(*x, *tables, 1e-6),
        [q, k, *weights],
        dtype,
    )
