"""Random ragged problems for the kernel tests, scale-free comparison, and what operators owe."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import register_random, settings
from hypothesis import strategies as st
from msa_kernels import chunk_offsets
from msa_kernels.dispatch import interpreting
from msa_kernels.ragged import cumulative
from torch import Tensor

# Triton's interpreter is slow, and its half precision is not that of a GPU.
CASES = settings(max_examples=12 if interpreting() else 50, deadline=None)
torch_only = pytest.mark.skipif(interpreting(), reason="says something about the torch path alone")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12}  # of gradients


class _TorchRandom:
    """What hypothesis seeds before every example, so that a failure comes again."""

    seed, getstate, setstate = torch.manual_seed, torch.get_rng_state, torch.set_rng_state


RANDOM = _TorchRandom  # hypothesis refers to it weakly
register_random(RANDOM)


def as_inputs(*states: Tensor, dtype: torch.dtype) -> list[Tensor]:
    return [x.to(dtype).requires_grad_() for x in states]


def cu(lengths) -> Tensor:
    return cumulative(torch.tensor(list(lengths), dtype=torch.int64))


def strided(x: Tensor) -> Tensor:
    """The same values, not one row behind the other in memory."""
    if x.dim() == 1:
        return torch.stack([x, torch.zeros_like(x)], 1)[:, 0]
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def error_ratio(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of the expected, where that is finite."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    finite = expected.isfinite()
    assert torch.equal(actual[~finite], expected[~finite])
    actual, expected = actual[finite].detach().double(), expected[finite].detach().double()
    if not expected.numel() or not expected.any():
        return float(actual.abs().max()) if actual.numel() else 0.0
    return float((actual - expected).norm() / expected.norm())


@dataclass
class Routing:
    """Arguments of document_scores; small whole numbers make equal scores common."""

    query: Tensor
    query_cu: Tensor
    keys: Tensor
    chunk_cu: Tensor
    context_bank: Tensor
    bank_cu: Tensor

    def arguments(self) -> tuple[Tensor, ...]:
        return tuple(vars(self).values())

    def in_dtype(self, dtype: torch.dtype) -> "Routing":
        fields = dict(vars(self))
        fields["query"], fields["keys"] = fields["query"].to(dtype), fields["keys"].to(dtype)
        return Routing(**fields)


def _exact(x: Tensor) -> Tensor:
    """Rounded to 1/256, so that float32 adds the products without error in any order. Scores that
    differ by rounding alone have no arg-max to agree on: it would depend on memory alignment."""
    return (x * 256).round() / 256


@st.composite
def routings(draw, ties: bool = True, banks: int = 3) -> Routing:
    """Empty banks and documents, contexts without question tokens, one to `banks` banks."""
    sizes = draw(st.lists(st.integers(0, 5) | st.just(35), min_size=1, max_size=banks))
    lengths = draw(st.lists(st.integers(0, 40), min_size=sum(sizes), max_size=sum(sizes)))
    chunk_cu = chunk_offsets(cu(lengths), 8)
    tokens = draw(st.lists(st.integers(0, 6) | st.just(19), max_size=5))
    bank = draw(
        st.lists(st.integers(0, len(sizes) - 1), min_size=len(tokens), max_size=len(tokens))
    )
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    width = 6
    query = _exact(torch.randn(sum(tokens), width, generator=random))
    keys = _exact(torch.randn(int(chunk_cu[-1]), width, generator=random))
    if ties and draw(st.booleans()):
        query, keys = query.round(), keys.round()
    return Routing(
        query, cu(tokens), keys, chunk_cu, torch.tensor(bank, dtype=torch.int64), cu(sizes)
    )


@st.composite
def attentions(draw, decode: bool = True) -> dict:
    """Arguments of context_attention: contexts with nothing selected, empty contexts, decoding."""
    groups, repeat, width = draw(st.sampled_from([(1, 1, 4), (2, 2, 4), (1, 3, 2)]))
    rows = draw(st.lists(st.integers(0, 9) | st.just(37), max_size=5))
    earlier = [draw(st.integers(0, 5)) if decode else 0 for _ in rows]
    chunks = draw(st.integers(1, 7))
    chosen = st.lists(st.integers(0, chunks - 1), max_size=5)
    many = chosen.map(lambda part: [*part, *[chunks - 1] * 18])
    selected = [draw(chosen | many) for _ in rows]
    if draw(st.booleans()):
        selected = [[] for _ in rows]
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def states(count: int, heads: int) -> Tensor:
        return torch.randn(count, heads, width, generator=random)

    def values(count: int) -> Tensor:
        """The first is one, as is its mean under any weights: no output cancels to nearly zero,
        where float32 itself loses any relative precision."""
        return torch.cat([torch.ones(count, groups, 1), states(count, groups)[..., 1:]], 2)

    keys = [a + b for a, b in zip(rows, earlier, strict=True)]
    index = [chunk for part in selected for chunk in part]
    bias = torch.randn(len(index), generator=random) * 3
    head = torch.tensor([draw(st.integers(0, 4)) for _ in rows], dtype=torch.int64)
    return {
        "q": states(sum(rows), groups * repeat),
        "k": states(sum(keys), groups),
        "v": values(sum(keys)),
        "q_cu": cu(rows),
        "k_cu": cu(keys),
        "pooled_k": states(chunks, groups),
        "pooled_v": values(chunks),
        "index": torch.tensor(index, dtype=torch.int64),
        "index_cu": cu(len(part) for part in selected),
        "bias": draw(st.sampled_from([bias, None])),
        "memory_from": draw(st.sampled_from([head, None])),
        "scale": 0.4,
    }


def gradients(out: Tensor, inputs: list[Tensor], weight: Tensor) -> list[Tensor]:
    """Gradients of <out, weight> where out is finite; zeros for inputs that out does not use."""
    total = torch.where(out.isfinite(), out * weight, 0).sum()
    found = torch.autograd.grad(total, inputs, allow_unused=True) if total.requires_grad else None
    found = found or [None] * len(inputs)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def gradient_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Largest error ratio of the gradients; in float32 of all together, because one alone may
    cancel to nearly zero (a gate that decides alone, a head of two values behind a norm)."""
    if expected[0].dtype == torch.float32:
        actual, expected = ([torch.cat([x.flatten() for x in part])] for part in (actual, expected))
    return max(error_ratio(a, b) for a, b in zip(actual, expected, strict=True))


def check_compiled(function: Callable, arguments: tuple, whole: bool = True) -> None:
    """torch.compile of a function gives the same results and gradients; whole: in one graph."""
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


FAR_ROWS, FAR_WIDTH = 2**21 + 70, 1024  # their product passes 2^31


def far_rows(folder: Path) -> Tensor:
    """[FAR_ROWS, FAR_WIDTH] of zeros, in a file that is mostly holes; the last 64 rows all ones.

    Places of the last rows need more than 31 bits.
    """
    size = FAR_ROWS * FAR_WIDTH
    x = torch.from_file(str(folder / "far"), shared=True, size=size, dtype=torch.float16)
    x = x.view(FAR_ROWS, FAR_WIDTH)
    x[-64:] = 1
    return x
