"""The accuracy checks pass where the kernels are right, and only there."""

import pytest
import torch

from msa_train.bench.gpu import accuracy
from msa_train.bench.gpu.accuracy import CHECKS, Check, error_ratio

CPU = torch.device("cpu")
# What each operation's checks must notice, and one cheap check of it.
OPERATIONS = {
    "chunk_mean": "chunk_mean, float32",
    "document_scores": "document_scores, (12, 0, 8) tokens, float32",
    "chunk_scores": "chunk_scores, float32",
    "quantised_document_scores": "quantised_document_scores, int8, 1 tokens",
    "norm_rope": "norm_rope, float32",
    "document_attention": "document_attention, head dim 64, bfloat16",
    "context_attention": "context_attention, head dim 64, float32",
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kernel_that_is_off_is_noticed(operation, monkeypatch):
    check = CHECKS[OPERATIONS[operation]]
    assert check.error(CPU) < check.allowed
    real = getattr(accuracy, operation)

    def off(*given):
        out = real(*given)
        if isinstance(out, tuple):
            return out[0] * 1.01, *out[1:]
        return out * 1.01

    monkeypatch.setattr(accuracy, operation, off)
    assert check.error(CPU) > check.allowed


def test_a_gradient_that_is_off_is_noticed():
    def truth(x):
        return x * x

    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            return 2.1 * grad * ctx.saved_tensors[0]

    x = [torch.arange(1.0, 5.0)]
    assert accuracy.compared(truth, truth, x, torch.float32, CPU) < 1e-6
    assert accuracy.compared(Off.apply, truth, x, torch.float32, CPU) == pytest.approx(0.025)


def test_what_is_not_deterministic_is_refused():
    calls = []

    def wavers(x):
        calls.append(x)
        return x * len(calls)

    with pytest.raises(AssertionError, match="not deterministic"):
        accuracy.compared(wavers, lambda x: x, [torch.ones(3)], torch.float32, CPU)


def test_errors_are_of_all_values_together():
    true = torch.tensor([3.0, 4.0, -torch.inf])
    assert error_ratio(torch.tensor([3.0, 4.5, -torch.inf]), true) == pytest.approx(0.1)
    for other in (0.0, torch.nan, torch.inf):
        assert error_ratio(torch.tensor([3.0, 4.0, other]), true) == torch.inf


def test_models_are_as_right_as_kernels_allow():
    for name in ("decoder: encoded documents, bfloat16", "decoder: written tokens, float32"):
        check = CHECKS[name]
        assert check.error(CPU) < check.allowed


def test_an_error_beyond_what_is_allowed_is_called_wrong():
    wrong, right = (accuracy._checked(Check(0.1, lambda where, e=e: e)) for e in (0.2, 0.05))
    assert (wrong.note, right.note) == ("WRONG", "") and wrong.floor == 0.1
