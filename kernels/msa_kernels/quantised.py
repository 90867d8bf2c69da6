"""Router keys in 8 bits, and a search over them whose result is proved to be that of float32.

Rounding moves a key k by a vector of known length e, so no score <q, k> moves by more than |q| e
(Cauchy and Schwarz). Documents whose upper bound reaches the K-th lower bound are scored again in
full precision; no other document can be among the best K.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from msa_kernels import dispatch
from msa_kernels.cpu import scores as cpu
from msa_kernels.errors import KernelError
from msa_kernels.ragged import cumulative, segment_ids
from msa_kernels.route import SCRATCH_MB, chunk_scores
from msa_kernels.selection import top_documents

FORMATS = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}


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
        wide = self.values[rows].float().unflatten(1, (self.scales.shape[1], -1))
        return (wide * self.scales[rows, :, None]).flatten(1)


def quantise(keys: Tensor, heads: int, form: str) -> QuantisedKeys:
    """Router keys [C, V] of `heads` heads in 8 bits: form "int8" or "fp8" (e4m3).

    Each head of a chunk is divided by its largest value. Raises KernelError for another form, and
    for a width that is no multiple of heads.
    """
    dispatch.check_floating("quantise", keys=keys)
    if form not in FORMATS:
        raise KernelError(f"quantise: form is {form!r}; give {' or '.join(FORMATS)}")
    if keys.dim() != 2 or heads < 1 or keys.shape[1] % heads:
        raise KernelError(f"quantise: keys {tuple(keys.shape)} do not divide into {heads} heads")
    return QuantisedKeys(*_quantise(keys, heads, form))


@torch.library.custom_op("msa_kernels::quantise", mutates_args=())
def _quantise(keys: Tensor, heads: int, form: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, largest = FORMATS[form]
    if dispatch.takes_triton("quantise", keys) and _known(keys.device, dtype):
        from msa_kernels.gpu import quantise as gpu

        values, scales, squares, lengths = gpu.quantise(keys.contiguous(), heads, dtype, largest)
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


@_quantise.register_fake
def _(keys, heads, form):
    new = [keys.new_empty(len(keys), dtype=torch.float32) for _ in range(2)]
    scales = keys.new_empty(len(keys), heads, dtype=torch.float32)
    return keys.new_empty(keys.shape, dtype=FORMATS[form][0]), scales, *new


def quantised_document_scores(
    query: Tensor,
    query_cu: Tensor,
    keys: QuantisedKeys,
    chunk_cu: Tensor,
    scratch_mb: float = SCRATCH_MB,
) -> Tensor:
    """[m, n] float32: document_scores of the keys as they were rounded, of one bank of all.

    query [N, V], query_cu [m+1], chunk_cu [n+1]; no gradient.
    """
    dispatch.check_floating("quantised_document_scores", query=query)
    dispatch.check_cumulative("quantised_document_scores", "query_cu", query_cu, len(query))
    dispatch.check_cumulative("quantised_document_scores", "chunk_cu", chunk_cu, len(keys.values))
    bank = query_cu.new_zeros(len(query_cu) - 1), query_cu.new_tensor([0, len(chunk_cu) - 1])
    with torch.no_grad(), dispatch.exact(query.device):
        query = query.float()
        head, values = keys.values.shape[1] // keys.scales.shape[1], keys.values
        known = _known(values.device, values.dtype) and head % 16 == 0  # whole tiles of a head
        if dispatch.takes_triton("document_scores", query) and known:
            from msa_kernels.gpu import scores as gpu

            narrow = keys.values.contiguous(), keys.scales.contiguous()
            return gpu.documents(query.contiguous(), query_cu, *narrow, chunk_cu, *bank, False)[0]
        stored = cpu.Stored(keys.dequantised, torch.float32, True)
        budget = scratch_mb * (1 << 20)
        return cpu.documents(query, query_cu, stored, chunk_cu, *bank, budget, False)[0]


def _known(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton knows the dtype there: fp8 e4m3 begins with Ada and Hopper."""
    old = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9)
    return not (old and dtype == torch.float8_e4m3fn)


@dataclass(frozen=True)
class Certified:
    """The best documents by float32 score, as top_documents returns them, and what that took.

    candidates [m]: documents of each context that were scored again in full precision.
    """

    values: Tensor
    documents: Tensor
    candidates: Tensor


def certified_top_documents(
    query: Tensor,
    query_cu: Tensor,
    keys: QuantisedKeys,
    full: Callable[[Tensor], Tensor],
    chunk_cu: Tensor,
    k: int,
    scratch_mb: float = SCRATCH_MB,
) -> Certified:
    """top_documents(document_scores(...), k) of float32 keys, read mostly from 8-bit ones.

    query [N, V], query_cu [m+1]; chunk_cu [n+1]; full(chunks [S] ascending) -> [S, V]: the
    full-precision keys of some chunks, wherever they lie. All contexts search all documents.
    """
    dispatch.check_positive("certified_top_documents", "k", k)
    rough = quantised_document_scores(query, query_cu, keys, chunk_cu, scratch_mb)
    query, k = query.float(), min(k, rough.shape[1])
    doubt = _doubt(query, query_cu, keys, chunk_cu)
    candidate = rough > -torch.inf
    if k:
        candidate &= rough + doubt >= (rough - doubt).topk(k, dim=1).values[:, -1:]
    scores = torch.full_like(rough, -torch.inf)
    context, document = candidate.nonzero(as_tuple=True)
    step = max(1, int(scratch_mb * (1 << 20)) // (8 * 4 * max(1, query.shape[1])))
    for part in _parts(context, document, chunk_cu, step):
        scores[part] = _full_scores(query, query_cu, full, chunk_cu, *part)
    return Certified(*top_documents(scores, max(k, 1)), candidate.sum(1))


def _doubt(query: Tensor, query_cu: Tensor, keys: QuantisedKeys, chunk_cu: Tensor) -> Tensor:
    """[m, n] by how much a document's score can be off: rounded keys, and float32 sums."""
    document = segment_ids(chunk_cu)
    longest = keys.error.new_zeros(2, len(chunk_cu) - 1)
    for row, values in zip(longest, (keys.error, keys.norm), strict=True):
        row.scatter_reduce_(0, document, values, "amax")
    length = query.new_zeros(len(query_cu) - 1)
    length.scatter_reduce_(0, segment_ids(query_cu), query.norm(dim=1), "amax")
    # Sums of V products in any order, of a query in two narrow parts: V + 128 roundings at most.
    sums = (keys.values.shape[1] + 128) * 2.0**-23
    return length[:, None] * (longest[0] + sums * longest[1]) * (1 + 1e-5)


def _parts(context: Tensor, document: Tensor, chunk_cu: Tensor, step: int):
    """(contexts, documents) in stretches of about `step` chunks."""
    if not len(document):
        return
    chunks = (chunk_cu[document + 1] - chunk_cu[document]).cumsum(0)
    cuts = torch.arange(step, max(step, int(chunks[-1])), step, device=chunks.device)
    bounds = [0, *torch.searchsorted(chunks, cuts, right=True).unique().tolist(), len(document)]
    for first, last in pairwise(bounds):
        if first < last:
            yield context[first:last], document[first:last]


def _full_scores(
    query: Tensor, query_cu: Tensor, full: Callable[[Tensor], Tensor], chunk_cu: Tensor,
    context: Tensor, document: Tensor,
) -> Tensor:  # fmt: skip
    """[P] full-precision scores of pairs of a context and a document, contexts ascending."""
    counts = chunk_cu[document + 1] - chunk_cu[document]
    pair = torch.arange(len(document), device=document.device).repeat_interleave(counts)
    place = torch.arange(len(pair), device=pair.device) - cumulative(counts)[pair]
    chunks, index = (chunk_cu[document][pair] + place).unique(return_inverse=True)
    entries = counts.new_zeros(len(query_cu) - 1).index_add_(0, context, counts)
    keys = full(chunks).float()
    found = chunk_scores(query, query_cu, keys, index, cumulative(entries))
    scores = found.new_full((len(document),), -torch.inf)
    return scores.scatter_reduce_(0, pair, found, "amax")
