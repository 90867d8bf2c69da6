"""Part `accuracy`: every kernel, and the models made of them, against float64 on the CPU.

A check is the error of all values together, |found - true| / |true|, of results and of gradients.
The truth is the reference (msa_kernels.reference), which is loops, or the same model in float64.
tests/gpu asserts what is measured here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from msa_kernels import (
    chunk_mean,
    chunk_scores,
    context_attention,
    cumulative,
    document_attention,
    document_scores,
    norm_rope,
    quantise,
    quantised_document_scores,
    reference,
    top_documents,
)
from torch import Tensor

from msa_train.bench.gpu.models import random_decoder
from msa_train.bench.gpu.results import Measured, Row, measured
from msa_train.bench.gpu.sizes import BatterySizes
from msa_train.bench.kernels.cases import device
from msa_train.memory.engine.model_runner import ModelRunner
from msa_train.model.batch import context_positions
from msa_train.model.config import ModelConfig, RouterConfig
from msa_train.model.decoder import MSADecoder, PooledMemory

_UNIT = "RMS error ratio"
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 0.005, torch.float16: 0.002}
LENGTHS = (70, 1, 0, 64, 200, 33)  # tokens of documents
_MODEL = ModelConfig(
    layers=4, hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=192, vocab_size=512,
    router=RouterConfig(top_k=3, chunk_size=16),
)  # fmt: skip
_MODEL_ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 0.03}  # of all layers together


@dataclasses.dataclass(frozen=True)
class Check:
    """error(device): the largest RMS error ratio of what it compares; allowed: it is below."""

    allowed: float
    error: Callable[[torch.device], float]


Run = Callable[..., Tensor | tuple[Tensor, ...]]


def planned(sizes: BatterySizes) -> list[tuple[str, str]]:
    return [(name, _UNIT) for name in CHECKS]


def rows(sizes: BatterySizes) -> Iterator[Row]:
    """A row per check: the error beside what is allowed. One that is not deterministic fails."""
    for name, check in CHECKS.items():
        yield measured(name, _UNIT, partial(_checked, check))


def _checked(check: Check) -> Measured:
    error = check.error(device())
    return Measured(error, check.allowed, "" if error < check.allowed else "WRONG")


def error_ratio(found: Tensor, true: Tensor) -> float:
    """Of all values together; infinite where one is not finite that should be, or the other way."""
    found, true = found.detach().double().cpu(), true.detach().double().cpu()
    known = true.isfinite()
    if not found[known].isfinite().all() or not torch.equal(found[~known], true[~known]):
        return torch.inf
    return float((found - true)[known].norm() / true[known].norm())


def compared(
    run: Run, truth: Run, inputs: Sequence[Tensor], dtype: torch.dtype, where: torch.device,
    wide: int = 0,
) -> float:  # fmt: skip
    """Error of `run` in a dtype on a device, results and gradients, against `truth` in float64 on
    the CPU. Gradients may be off by twice as much (two roundings of the same kind meet in them), so
    their error counts half. wide: of the inputs, so many at the end stay float32. Raises
    AssertionError where a second run gives other gradients."""
    narrow = len(inputs) - wide
    rounded = [*(x.to(dtype) for x in inputs[:narrow]), *inputs[narrow:]]
    given = [x.to(where).requires_grad_() for x in rounded]
    exact = [x.double().requires_grad_() for x in rounded]
    found, true = _joined(run(*given)), _joined(truth(*exact))
    known = true.isfinite()
    weight = torch.randn(true.shape, generator=_seeded())[known].double()

    def gradients(out: Tensor, of: list[Tensor], kept: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((out[kept] * weight.to(out)).sum(), of)

    there = known.to(where)
    one, again = gradients(found, given, there), gradients(_joined(run(*given)), given, there)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True)), "not deterministic"
    pairs = zip(one, gradients(true, exact, known), strict=True)
    return max(error_ratio(found, true), *(error_ratio(a, b) / 2 for a, b in pairs))


def _joined(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([x.flatten() for x in out]) if isinstance(out, tuple) else out


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def _cu(lengths: Sequence[int], where: torch.device | str = "cpu") -> Tensor:
    return cumulative(torch.tensor(list(lengths))).to(where)


def _either(make: Callable[[bool, torch.device], Run], where: torch.device) -> tuple[Run, Run]:
    """(the operation with its other arguments on a device, the reference with them on the CPU)."""
    return make(False, where), make(True, torch.device("cpu"))


# Operations.


def _pool(dtype: torch.dtype, where: torch.device) -> float:
    def make(true: bool, there: torch.device) -> Run:
        function = reference.chunk_mean if true else chunk_mean
        return lambda x: function(x, _cu(LENGTHS, there), 64)

    return compared(*_either(make, where), [_drawn(sum(LENGTHS), 8, 128)], dtype, where)


def _scores(tokens: tuple[int, ...], dtype: torch.dtype, where: torch.device) -> float:
    """Documents' scores of three contexts in two banks, each divided by its longest products."""

    def make(true: bool, there: torch.device) -> Run:
        function = reference.document_scores if true else document_scores
        cu, banks = _cu(tokens, there), (torch.tensor([0, 1, 0], device=there), _cu([2, 2], there))
        return lambda query, keys: function(query, cu, keys, _cu([3, 0, 4, 2], there), *banks)

    inputs = [_drawn(sum(tokens), 256), _drawn(9, 256)]
    return compared(*_either(make, where), inputs, dtype, where)


def _among_junk(where: torch.device) -> float:
    """Query and keys with NaN around them in memory, and documents that no context can find: what
    has no part in a gradient is not read for it."""
    tokens, chunks = _cu((1, 2, 1), where), _cu([3, 0, 4, 2], where)
    banks = torch.tensor([0, 1, 0], device=where), _cu([2, 2], where)
    inputs = [_drawn(4, 256), _drawn(9, 256)]
    given = [F.pad(x, (0, 0, 1, 1), value=torch.nan).to(where)[1:-1] for x in inputs]
    wide = [x.double().requires_grad_() for x in inputs]
    query, keys = (x.requires_grad_() for x in given)
    found = document_scores(query, tokens, keys, chunks, *banks)
    layout = (x.cpu() for x in (chunks, *banks))
    true = reference.document_scores(wide[0], tokens.cpu(), wide[1], *layout)
    known = true.isfinite()
    one = torch.autograd.grad(found[known.to(where)].sum(), given)
    pairs = zip(one, torch.autograd.grad(true[known].sum(), wide), strict=True)
    return max(error_ratio(found, true), *(error_ratio(a, b) for a, b in pairs))


def _selected(dtype: torch.dtype, where: torch.device) -> float:
    def make(true: bool, there: torch.device) -> Run:
        function = reference.chunk_scores if true else chunk_scores
        index = torch.tensor([0, 1, 2, 8, 7], device=there), _cu([3, 0, 2], there)
        return lambda query, keys: function(query, _cu((12, 0, 8), there), keys, *index)

    return compared(*_either(make, where), [_drawn(20, 256), _drawn(9, 256)], dtype, where)


def _split(dtype: torch.dtype, tokens: int, scale: float, where: torch.device) -> float:
    """A float32 query beside narrow keys, at the length that a router gives it and far below."""
    query = _drawn(tokens, 1024) * scale
    keys = F.normalize(_drawn(300, 8, 128), dim=-1).flatten(1).to(dtype)
    one = torch.zeros(1, dtype=torch.int64), _cu([100])
    given = query, _cu([tokens]), keys, _cu([3] * 100), *one
    found = document_scores(*(x.to(where) for x in given))
    true = reference.document_scores(query.double(), given[1], keys.double(), *given[3:])
    return error_ratio(found, true)


def _quantised(form: str, tokens: int, where: torch.device) -> float:
    """Scores of rounded keys against those of the numbers that they were rounded to."""
    keys = F.normalize(_drawn(3_000, 8, 128), dim=-1).flatten(1)
    query, query_cu = _drawn(tokens, 1024) / 32, _cu([tokens])
    chunk_cu = _cu([1, 3, 2, 4] * 300)
    small = quantise(keys.to(where), 8, form)
    wide = small.dequantised().double().cpu()
    moved = (wide - keys.double()).norm(dim=1)
    assert bool((moved <= small.error.double().cpu() * (1 + 1e-6)).all()), "beyond its own bound"
    found = quantised_document_scores(
        query.to(where), query_cu.to(where), small, chunk_cu.to(where)
    )
    bank = torch.zeros(1, dtype=torch.int64), _cu([len(chunk_cu) - 1])
    true = document_scores(query.double(), query_cu, wide, chunk_cu, *bank)
    return error_ratio(found, true)


def _documents(width: int, dtype: torch.dtype, where: torch.device) -> float:
    def make(true: bool, there: torch.device) -> Run:
        function = reference.document_attention if true else document_attention
        return lambda *x: function(*x, _cu(LENGTHS, there), width**-0.5)

    inputs = [_drawn(sum(LENGTHS), heads, width, seed=n) for n, heads in enumerate((8, 2, 2))]
    return compared(*_either(make, where), inputs, dtype, where)


def _contexts(width: int, dtype: torch.dtype, where: torch.device) -> float:
    def make(true: bool, there: torch.device) -> Run:
        function = reference.context_attention if true else context_attention
        cu, index_cu = _cu(LENGTHS, there), _cu([2, 0, 0, 1, 2, 0], there)
        index = torch.tensor([0, 3, 4, 11, 3], device=there)
        head = torch.full((len(LENGTHS),), 3, device=there)

        def run(q, k, v, pooled_k, pooled_v, bias):
            states = q, k, v, cu, cu, pooled_k, pooled_v
            return function(*states, index, index_cu, bias, head, width**-0.5)

        return run

    own = [_drawn(sum(LENGTHS), heads, width, seed=n) for n, heads in enumerate((8, 2, 2))]
    pooled = [_drawn(12, 2, width, seed=n) for n in (3, 4)]
    return compared(*_either(make, where), [*own, *pooled, _drawn(5)], dtype, where, wide=1)


def _norm_rope(dtype: torch.dtype, where: torch.device) -> float:
    angle = torch.arange(70.0)[:, None] * torch.linspace(0.1, 1.5, 32)

    def make(true: bool, there: torch.device) -> Run:
        function = reference.norm_rope if true else norm_rope
        tables = angle.cos().to(there), angle.sin().to(there)
        return lambda *x: function(*x, *tables, 1e-6)

    inputs = [_drawn(70, 8, 64), _drawn(70, 2, 64), _drawn(64, seed=1), _drawn(64, seed=2)]
    return compared(*_either(make, where), inputs, dtype, where)


def _large_offsets(where: torch.device) -> float:
    """More than 2^31 values in a tensor, of which the last chunk alone is not zero."""
    rows, width = ((1 << 21) + 64, 1024) if where.type == "cuda" else (1 << 8, 1024)
    x = torch.zeros(rows, width, dtype=torch.bfloat16, device=where)
    x[-64:] = 1
    mean = chunk_mean(x, _cu([rows], where), 64)
    true = torch.zeros(len(mean), width)
    true[-1] = 1
    return error_ratio(mean, true)


def _best(where: torch.device) -> float:
    """Numbers of the best documents, with ties: their distance from those of a stable sort."""
    scores = _drawn(3, 5_000).mul(8).round()
    found = top_documents(scores.to(where), 16)[1].cpu()
    true = scores.sort(dim=1, descending=True, stable=True).indices[:, :16]
    return error_ratio(found, true)


# Models.


def _decoders(dtype: torch.dtype, where: torch.device) -> tuple[MSADecoder, MSADecoder]:
    """The same small model in a dtype on a device, and in float64 on the CPU."""
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    truth = random_decoder(_MODEL, cpu, torch.float32).to(dtype).double()
    model = MSADecoder(_MODEL).to(dtype)
    model.load_state_dict(truth.state_dict())
    return model.to(where).eval().requires_grad_(False), truth


def _bank() -> tuple[Tensor, Tensor]:
    lengths = [20, 48, 7, 16, 33]
    drawn = torch.randint(_MODEL.vocab_size, (sum(lengths),), generator=_seeded())
    return drawn, _cu(lengths)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@torch.inference_mode()
def _encoded(dtype: torch.dtype, where: torch.device) -> float:
    model, truth = _decoders(dtype, where)
    found, true = (each.encode(*(x.to(each.device) for x in _bank())) for each in (model, truth))
    return max(
        error_ratio(getattr(found[layer], name), getattr(true[layer], name))
        for layer in true
        for name in ("k", "v", "key")
    )


@torch.inference_mode()
def _written(where: torch.device) -> float:
    """Steps of a decoder (captured on a GPU) against prefills of as many tokens, in float32."""
    model, truth = _decoders(torch.float32, where)
    contexts, length, steps = 3, 9, 12
    tokens = torch.randint(_MODEL.vocab_size, (contexts, length + steps), generator=_seeded())
    runner = ModelRunner(model, 4, 64)
    runner.admit(_prefill(model, tokens[:, :length]), range(contexts))
    worst = 0.0
    for step in range(steps):
        runner.feed([[token] for token in tokens[:, length + step].tolist()])
        true = _prefill(truth, tokens[:, : length + step + 1])
        worst = max(worst, error_ratio(runner.last[:contexts], true.last))
    return worst


def _prefill(model: MSADecoder, tokens: Tensor):
    """Of contexts [m, t] whose tokens 2 to 5 ask the bank."""
    where, (m, t) = model.device, tokens.shape
    documents, cu = (x.to(where) for x in _bank())
    size = _MODEL.router.chunk_size
    chunk_cu = _cu([-(-n // size) for n in cu.diff().tolist()], where)
    memory = PooledMemory(model.encode(documents, cu), chunk_cu, _MODEL.router)
    place = torch.arange(t).repeat(m)
    given = (
        tokens.flatten(), _cu([t] * m), context_positions(t, 2, _MODEL.router.top_k).repeat(m),
        (place >= 2) & (place < 6), torch.full((m,), 2),
    )  # fmt: skip
    return model.prefill(*(x.to(where) for x in given), memory)


def _by_dtype(name: str, run: Callable[[torch.dtype, torch.device], float]) -> dict[str, Check]:
    return {
        f"{name}, {str(dtype).removeprefix('torch.')}": Check(allowed, partial(run, dtype))
        for dtype, allowed in ALLOWED.items()
    }


def _checks() -> dict[str, Check]:
    found: dict[str, Check] = {}
    for tokens in ((12, 0, 8), (1, 1, 1), (70, 3, 33)):
        found |= _by_dtype(f"document_scores, {tokens} tokens", partial(_scores, tokens))
    for dtype in (torch.bfloat16, torch.float16):
        for scale in (1 / 32, 1e-5):
            name = f"document_scores, {str(dtype)[6:]} keys and a float32 query x {scale:.0e}"
            found[name] = Check(1e-4, partial(_split, dtype, 20, scale))
    found["document_scores, with NaN around its arguments"] = Check(1e-5, _among_junk)
    for form in ("int8", "fp8"):
        for tokens in (1, 40):
            # A query in two narrow parts has 16 bits.
            found[f"quantised_document_scores, {form}, {tokens} tokens"] = Check(
                1e-4, partial(_quantised, form, tokens)
            )
    for width in (64, 128):
        found |= _by_dtype(f"context_attention, head dim {width}", partial(_contexts, width))
        found |= _by_dtype(f"document_attention, head dim {width}", partial(_documents, width))
    found |= _by_dtype("chunk_mean", _pool)
    found |= _by_dtype("chunk_scores", _selected)
    found |= _by_dtype("norm_rope", _norm_rope)
    found["top_documents, among equals"] = Check(1e-12, _best)
    found["chunk_mean, past 32-bit offsets"] = Check(1e-12, _large_offsets)
    for dtype, allowed in _MODEL_ALLOWED.items():
        found[f"decoder: encoded documents, {str(dtype)[6:]}"] = Check(
            allowed, partial(_encoded, dtype)
        )
    found["decoder: written tokens, float32"] = Check(_MODEL_ALLOWED[torch.float32], _written)
    return found


CHECKS = _checks()
