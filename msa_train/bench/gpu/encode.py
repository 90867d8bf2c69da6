"""Part `encode`: how fast documents become pooled states, beside the arithmetic that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median

import torch

from msa_train.bench.floor import Floor, encode_flops
from msa_train.bench.gpu.models import random_decoder
from msa_train.bench.gpu.results import Measured, Row, measured
from msa_train.bench.gpu.sizes import GEOMETRIES, BatterySizes
from msa_train.bench.kernels.cases import device
from msa_train.bench.runner import in_turns
from msa_train.memory.bank.encode import begun
from msa_train.model.config import ModelConfig
from msa_train.model.transfer import Downloads

_UNIT = "tokens/s"


def planned(sizes: BatterySizes) -> list[tuple[str, str]]:
    return [(_name(name, tokens), _UNIT) for name in GEOMETRIES for tokens in _batches(sizes)]


def rows(sizes: BatterySizes) -> Iterator[Row]:
    """Of each geometry, in batches of a few sizes: tokens are given, states end on the host."""
    torch.manual_seed(0)
    for name in GEOMETRIES:
        for tokens in _batches(sizes):
            config = sizes.geometry(name)
            yield measured(_name(name, tokens), _UNIT, partial(_rate, config, tokens, sizes))


def _batches(sizes: BatterySizes) -> tuple[int, int]:
    return sizes.encoded // 4, sizes.encoded


def _name(geometry: str, tokens: int) -> str:
    return f"{geometry} geometry, {tokens:,} tokens at once"


@torch.inference_mode()
def _rate(config: ModelConfig, tokens: int, sizes: BatterySizes) -> Measured:
    where = device()
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    model = random_decoder(config, where, dtype)
    lengths = [sizes.document_tokens] * (tokens // sizes.document_tokens)
    given = torch.randint(config.vocab_size, (len(lengths), lengths[0])).tolist()
    downloads = Downloads(where)
    times = in_turns({"encode": lambda: begun(model, [], given, dtype, downloads)()}, sizes.repeats)
    ms = median(times["encode"])
    floor = encode_flops(config, lengths) / Floor.of(dtype).flops_per_ms
    return Measured(sum(lengths) / ms * 1e3, sum(lengths) / floor * 1e3, f"{ms:.1f} ms")
