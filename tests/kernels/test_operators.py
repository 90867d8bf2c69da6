"""torch.library operators: declared as they behave, and taken whole by torch.compile."""

import pytest
import torch
from msa_kernels import (
    chunk_mean,
    chunk_scores,
    context_attention,
    document_attention,
    document_scores,
    norm_rope,
    pool_states,
)
from msa_kernels.dispatch import interpreting
from torch.library import opcheck

from tests.kernels.kernel_cases import cu


def states(*shape):
    return torch.randn(*shape, requires_grad=True)


ROUTED = (cu([3, 0, 2]), torch.tensor([0, 0, 1]), cu([2, 1]))  # of query, banks of contexts


def cases():
    """{operator: (public function, its arguments, the operator's own)}"""
    query, keys, chunk_cu = states(5, 8), states(9, 8), cu([3, 4, 2])
    query_cu, bank, bank_cu = ROUTED
    scored = (query, query_cu, keys, chunk_cu, bank, bank_cu)
    index, index_cu = torch.tensor([0, 1, 2, 7, 8]), cu([3, 0, 2])
    q, k, v = states(9, 4, 8), states(9, 2, 8), states(9, 2, 8)
    pooled = states(9, 2, 8), states(9, 2, 8)
    own = (q, k, v, cu([4, 0, 5]), cu([4, 0, 5]), *pooled, index, index_cu)
    read = (*own, states(5), torch.tensor([1, 0, 2]), 0.3)
    alone = (q, k, v, cu([4, 5]), 0.3)
    nothing = (torch.zeros(0, 2, 8), torch.zeros(0, 2, 8), torch.zeros(0).long(), cu([0, 0]))
    packed = (k, v, states(9, 2, 8), cu([4, 5]), 3)
    angle = torch.rand(9, 4)
    turned = (q, k, states(8), states(8), angle.cos(), angle.sin(), 1e-6)
    ops = torch.ops.msa_kernels
    flat = [states(9, 16) for _ in range(3)]
    return {
        "chunk_mean": (chunk_mean, (k, cu([4, 5]), 3), ops.chunk_mean, (flat[0], *packed[3:])),
        "pool_states": (pool_states, packed, ops.pool_states, (*flat, *packed[3:], 8)),
        "document_scores": (
            document_scores, scored, ops.document_scores, (*scored, float(1 << 26), True),
        ),
        "chunk_scores": (
            chunk_scores, (query, query_cu, keys, index, index_cu), ops.entry_scores,
            (query, query_cu, keys, index, index_cu, float(1 << 26)),
        ),
        "context_attention": (context_attention, read, ops.context_attention, read),
        "document_attention": (
            document_attention, alone, ops.context_attention,
            (q, k, v, cu([4, 5]), cu([4, 5]), *nothing, None, None, 0.3),
        ),
        "norm_rope": (norm_rope, turned, ops.norm_rope, turned),
    }  # fmt: skip


NAMES = list(cases())


@pytest.mark.parametrize("name", NAMES)
def test_operators_are_what_they_say(name):
    if name.endswith("attention") and not interpreting():
        pytest.skip("an operator of the Triton kernel, see test_interpreted.py")
    _, _, operator, arguments = cases()[name]
    opcheck(operator.default, arguments)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_functions_give_the_same(name):
    function, arguments, *_ = cases()[name]
    whole = interpreting() or not name.endswith("attention")
    compiled = torch.compile(function, backend="aot_eager", fullgraph=whole)
    learning = [x for x in arguments if torch.is_tensor(x) and x.requires_grad]
    found = []
    for run in (compiled, function):
        out = run(*arguments)
        out = torch.cat([x.flatten() for x in out]) if isinstance(out, tuple) else out
        total = torch.where(out.isfinite(), out, 0).square().sum()
        found.append((out, *torch.autograd.grad(total, learning)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
