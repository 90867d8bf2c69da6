"""Attention of documents and contexts: the padded path against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msa_kernels import KernelError, context_attention, document_attention, reference
from msa_kernels.dispatch import interpreting
from torch.library import opcheck

from tests.kernels.kernel_cases import (
    CASES,
    DTYPES,
    TOLERANCE,
    as_inputs,
    attentions,
    check_compiled,
    cu,
    error_ratio,
    gradient_error,
    gradients,
    strided,
    torch_only,
)

GRADIENTS = {**TOLERANCE, torch.float64: 1e-10}  # w - w * w, of a weight w near one
SCRATCH = st.sampled_from([1e-4, 64.0])  # some query rows at a time, or everything at once
# Of whatever size, the kernel sees the same kinds: several documents, one of several tiles.
DOCUMENTS, LONG = (3, 260) if interpreting() else (8, 690)


def learning(case: dict, dtype: torch.dtype) -> tuple[dict, list[torch.Tensor]]:
    wide = {
        name: x.to(dtype).requires_grad_() if torch.is_tensor(x) and x.is_floating_point() else x
        for name, x in case.items()
    }
    return wide, [x for x in wide.values() if torch.is_tensor(x) and x.requires_grad]


@DTYPES
@given(case=attentions(), scratch_mb=SCRATCH)
@CASES
def test_context_attention_matches_the_reference(dtype, case, scratch_mb):
    case, _ = learning(case, dtype)
    expected = reference.context_attention(**case)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-13}[dtype]
    assert error_ratio(context_attention(**case, scratch_mb=scratch_mb), expected) < tolerance


@DTYPES
@given(case=attentions(), scratch_mb=SCRATCH)
@CASES
def test_context_attention_gradients_match_the_reference(dtype, case, scratch_mb):
    case, inputs = learning(case, dtype)
    expected = reference.context_attention(**case)
    actual = context_attention(**case, scratch_mb=scratch_mb)
    weight = torch.randn(expected.shape, dtype=dtype)
    found = [gradients(x, inputs, weight) for x in (actual, expected)]
    assert gradient_error(*found) < GRADIENTS[dtype]


@DTYPES
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=DOCUMENTS))
@CASES
def test_document_attention_matches_the_reference(dtype, lengths):
    offsets = cu(lengths)
    states = [torch.randn(sum(lengths), heads, 8, dtype=dtype) for heads in (4, 2, 2)]
    inputs = as_inputs(*states, dtype=dtype)
    outs = [f(*inputs, offsets, 0.3) for f in (document_attention, reference.document_attention)]
    assert error_ratio(*outs) < {torch.float32: 1e-6, torch.float64: 1e-13}[dtype]
    weight = torch.randn(outs[0].shape, dtype=dtype)
    assert gradient_error(*(gradients(x, inputs, weight) for x in outs)) < GRADIENTS[dtype]


def context(rows=6, keys=6, chunks=3, dtype=torch.float32):
    q, k, v, pooled_k, pooled_v = (
        torch.randn(count, heads, 8).to(dtype)
        for count, heads in ((rows, 4), (keys, 2), (keys, 2), (chunks, 2), (chunks, 2))
    )
    states = [q, k, v, cu([rows]), cu([keys]), pooled_k, pooled_v]
    return [*states, torch.arange(chunks), cu([chunks]), torch.randn(chunks) * 10, None, 0.35]


def test_decoding_one_token_gives_the_last_row():
    whole = context()
    last = [whole[0][-1:], *whole[1:3], cu([1]), *whole[4:]]
    torch.testing.assert_close(context_attention(*last), context_attention(*whole)[-1:])


def test_the_head_does_not_depend_on_the_memory():
    first, second = context(), context()
    second[:3] = first[:3]
    outs = []
    for case in (first, second):
        case[10] = torch.tensor([2])
        outs.append(context_attention(*case))
    assert torch.equal(outs[0][:2], outs[1][:2])
    assert not torch.allclose(outs[0][2:], outs[1][2:])


def test_strides_change_nothing():
    case = context()
    case[10] = torch.tensor([2])
    apart = [strided(x) if torch.is_tensor(x) else x for x in case]
    torch.testing.assert_close(context_attention(*apart), context_attention(*case))


def test_order_of_chunks_does_not_matter():
    case = context()
    expected = context_attention(*case)
    order = torch.tensor([2, 0, 1])
    case[7], case[9] = case[7][order], case[9][order]
    torch.testing.assert_close(context_attention(*case), expected)


@torch_only
def test_half_precision_keeps_the_gate_sharp():
    # Around 30, neighbouring bfloat16 numbers are 1/8 apart: the bias must not be rounded to them.
    case = context(dtype=torch.bfloat16)
    bias = torch.tensor([-30.03, -30.09, -29.97])
    case[0] = torch.zeros_like(case[0])  # only the bias decides
    case[2] = torch.zeros_like(case[2])
    case[6] = torch.eye(3, 8, dtype=torch.bfloat16)[:, None].expand(3, 2, 8)
    case[9] = bias
    weights = context_attention(*case).float()[0, 0, :3]
    torch.testing.assert_close(weights / weights.sum(), bias.softmax(0), rtol=0.01, atol=0)


def test_a_long_document_matches_the_reference():
    q, k, v = (torch.randn(LONG + 10, heads, 8) for heads in (2, 1, 1))
    lengths = cu([LONG, 10])
    expected = reference.document_attention(q, k, v, lengths, 0.35)
    assert error_ratio(document_attention(q, k, v, lengths, 0.35), expected) < 1e-6


def test_impossible_arguments_are_refused():
    case = context()
    with pytest.raises(KernelError, match="more q rows than keys"):
        context_attention(*case[:1], *(x[:4] for x in case[1:3]), case[3], cu([4]), *case[5:])
    q, k, v = case[:3]
    with pytest.raises(KernelError, match="3 query heads are not a multiple of 2"):
        document_attention(q[:, :3], k, v, cu([6]), 0.3)
    with pytest.raises(KernelError, match="ends at 5, but there are 6 rows"):
        document_attention(q, k, v, cu([5]), 0.3)
    with pytest.raises(KernelError, match="need"):
        document_attention(q, k[..., :4], v[..., :4], cu([6]), 0.3)


def operands(*heads):
    states = (torch.randn(9, count, 8) for count in heads)
    return as_inputs(*states, dtype=torch.float32)


def read():
    """Contexts that read chunks, as arguments of context_attention and of its operator."""
    q, k, v, *pooled = operands(4, 2, 2, 2, 2)
    selected = torch.tensor([0, 1, 2, 7, 8]), cu([3, 0, 2]), torch.randn(5, requires_grad=True)
    own = cu([4, 0, 5])
    return (q, k, v, own, own, *pooled, *selected, torch.tensor([1, 0, 2]), 0.3)


def test_the_operator_is_what_it_says():
    if not interpreting():
        pytest.skip("an operator of the Triton kernel, see test_attend_triton.py")
    q, k, v = operands(4, 2, 2)
    nothing = (torch.zeros(0, 2, 8), torch.zeros(0, 2, 8), torch.zeros(0).long(), cu([0, 0]))
    alone = (q, k, v, cu([4, 5]), cu([4, 5]), *nothing, None, None, 0.3)
    for arguments in (read(), alone):
        opcheck(torch.ops.msa_kernels.context_attention.default, arguments)


def test_compiled_attention_gives_the_same():
    """In one graph where it is an operator; padded batches depend on the lengths."""
    check_compiled(context_attention, read(), whole=interpreting())
    documents = (*operands(4, 2, 2), cu([4, 5]), 0.3)
    check_compiled(document_attention, documents, whole=interpreting())
