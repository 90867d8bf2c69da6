"""Router keys in 8 bits, and the scores of keys so rounded.

Rounding moves a key k by a vector of known length e, so no score <q, k> moves by more than |q| e
(Cauchy and Schwarz): a search over rounded keys can tell which documents to score again in full
precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msa_kernels import dispatch
from msa_kernels.errors import KernelError
from msa_kernels.scores import SCRATCH_MB, TiledKeys, document_scores_in_torch

FORMATS = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}
_FP8_CAPABILITY = (8, 9)  # Ada, Hopper and later


@dataclass(frozen=True)
class QuantisedKeys:
    """Keys [C, V] as values [C, V] times scales [C, G], one per chunk and head.

    error [C]: length of the difference to the full-precision key; norm [C]: length of that key.
    """

    values: Tensor
    scales: Tensor
    error: Tensor
    norm: Tensor

    def dequantised(self, rows: slice = slice(None)) -> Tensor:
        """[C, V] float32."""
        return _widened(self.values[rows], self.scales[rows])


def _widened(values: Tensor, scales: Tensor) -> Tensor:
    """[C, V] float32."""
    wide = values.float().unflatten(1, (scales.shape[1], -1))
    return (wide * scales[..., None]).flatten(1)


@dispatch.operator("quantise", learns=False)
def _quantise(keys: Tensor, heads: int, form: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of QuantisedKeys."""
    dtype, largest = FORMATS[form]
    if dispatch.takes_triton("quantise", keys):
        from msa_kernels import quantised_triton

        found = quantised_triton.quantise(keys, heads, dtype, largest)
        values, scales, squares, lengths = found
        # Sums of squares in float32 may come out low by a little.
        return values, scales, *(x.sum(1).sqrt() * (1 + 1e-5) for x in (squares, lengths))
    wide = keys.float().unflatten(1, (heads, -1))
    scales = wide.abs().amax(2) / largest
    scales = torch.where(scales == 0, 1.0, scales)
    values = wide / scales[..., None]
    if not dtype.is_floating_point:
        values = (values + 0.5).floor()
    values = values.to(dtype)
    error = (wide - values.float() * scales[..., None]).flatten(1).norm(dim=1)
    norm = wide.flatten(1).norm(dim=1)
    return values.flatten(1), scales, *(x * (1 + 1e-5) for x in (error, norm))


@torch.library.register_fake(_quantise)
def _(keys, heads, form):
    new = [keys.new_empty(len(keys), dtype=torch.float32) for _ in range(2)]
    scales = keys.new_empty(len(keys), heads, dtype=torch.float32)
    return keys.new_empty(keys.shape, dtype=FORMATS[form][0]), scales, *new


def _check_card(operation: str, device: torch.device, dtype: torch.dtype) -> None:
    """Refuses fp8 on a card that does not compute with it: the torch path there would be slower
    than bfloat16 keys by an order of magnitude."""
    if dtype != torch.float8_e4m3fn or device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < _FP8_CAPABILITY:
        raise KernelError(
            f"{operation}: keys are fp8 on {device}, whose compute capability is "
            f"{'.'.join(map(str, capability))}; fp8 begins with "
            f"{'.'.join(map(str, _FP8_CAPABILITY))}: use int8"
        )


def quantise(keys: Tensor, heads: int, form: str) -> QuantisedKeys:
    """Router keys [C, V] of `heads` heads in 8 bits: form "int8" or "fp8" (e4m3).

    Each head of a chunk is divided by its largest value. Raises KernelError for another form, for a
    width that is no multiple of heads, and for fp8 on a card that does not compute with it.
    """
    dispatch.check_floating("quantise", keys=keys)
    if form not in FORMATS:
        raise KernelError(f"quantise: form is {form!r}; give {' or '.join(FORMATS)}")
    if keys.dim() != 2 or heads < 1 or keys.shape[1] % heads:
        raise KernelError(f"quantise: keys {tuple(keys.shape)} do not divide into {heads} heads")
    _check_card("quantise", keys.device, FORMATS[form][0])
    return QuantisedKeys(*_quantise(keys, heads, form))


@dispatch.operator("quantised_document_scores", learns=False)
def _scores(
    query: Tensor, query_cu: Tensor, values: Tensor, scales: Tensor, chunk_cu: Tensor, budget: float
) -> Tensor:  # fmt: skip
    """[m, n] of one bank. query [N, V] float32; budget: bytes."""
    bank = query_cu.new_zeros(len(query_cu) - 1), _one_bank(chunk_cu)
    whole_tiles = values.shape[1] // scales.shape[1] % 16 == 0  # of a head
    if dispatch.takes_triton("document_scores", query) and whole_tiles:
        from msa_kernels import scores_triton

        given = query, query_cu, values, scales, chunk_cu, *bank, False
        return scores_triton.document_scores(*given)[0]
    tiled = TiledKeys(lambda rows: _widened(values[rows], scales[rows]), torch.float32, copies=True)
    return document_scores_in_torch(query, query_cu, tiled, chunk_cu, *bank, budget, False)[0]


def _one_bank(chunk_cu: Tensor) -> Tensor:
    """[0, n]: made where it is, for a copy of a list would wait for the device."""
    return torch.arange(2, device=chunk_cu.device) * (len(chunk_cu) - 1)


@torch.library.register_fake(_scores)
def _(query, query_cu, values, scales, chunk_cu, budget):
    return query.new_empty(query_cu.shape[0] - 1, chunk_cu.shape[0] - 1)


def quantised_document_scores(
    query: Tensor,
    query_cu: Tensor,
    keys: QuantisedKeys,
    chunk_cu: Tensor,
    scratch_mb: float = SCRATCH_MB,
) -> Tensor:
    """document_scores of the keys as they were rounded; all documents are one bank.

    query [N, V], query_cu [m+1], chunk_cu [n+1] -> [m, n] float32, without gradient. scratch_mb and
    errors as for document_scores.
    """
    dispatch.check_floating("quantised_document_scores", query=query, scales=keys.scales)
    dispatch.check_cumulative("quantised_document_scores", "query_cu", query_cu, len(query))
    dispatch.check_cumulative("quantised_document_scores", "chunk_cu", chunk_cu, len(keys.values))
    if query.dim() != 2 or query.shape[1] != keys.values.shape[1]:
        shapes = tuple(query.shape), tuple(keys.values.shape)
        raise KernelError(
            f"quantised_document_scores: query and keys have shapes {shapes}; need [N, V], [C, V]"
        )
    _check_card("quantised_document_scores", keys.values.device, keys.values.dtype)
    given = query_cu, keys.values, keys.scales, chunk_cu, scratch_mb * (1 << 20)
    with torch.no_grad(), dispatch.without_autocast(query.device):
        return _scores(query.float(), *given)
