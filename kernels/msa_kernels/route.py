"""Routing: which documents a context reads (SPEC section 2, "Exact shortcut").

Scores are one GEMM of query vectors and pooled router keys, tile by tile; each tile is reduced
before the next is computed, so that nothing of size tokens x chunks outlives it. The gradient of a
score reaches one (token, chunk) only: two indices are saved, and backward sums what meets each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msa_kernels import dispatch
from msa_kernels.cpu import scores as cpu
from msa_kernels.errors import KernelError
from msa_kernels.reference import accumulation_dtype

SCRATCH_MB = 64.0
_MB = 1 << 20


def document_scores(
    query: Tensor,
    query_cu: Tensor,
    keys: Tensor,
    chunk_cu: Tensor,
    context_bank: Tensor,
    bank_cu: Tensor,
    scratch_mb: float = SCRATCH_MB,
) -> Tensor:
    """Score of every document of each context's bank (SPEC section 2, "chunk score").

    query [N, V] of the contexts' query tokens, query_cu [m+1]; keys [C, V], chunk_cu [n+1];
    context_bank [m]; bank_cu [b+1] documents per bank -> [m, n] float32 (float64 for float64): the
    maximum of <query, key> over the context's query tokens and the document's chunks. -inf outside
    the context's bank, for documents without chunks and contexts without query tokens. Query and
    keys may be of any floating dtype. The gradient goes to the arg-max (token, chunk) alone, among
    equals to the first chunk and its first token. scratch_mb bounds what the torch path holds
    beside arguments and result; the Triton kernel holds one number per score. Raises KernelError
    for tensors that do not fit together.
    """
    _check("document_scores", query, query_cu, keys)
    dispatch.check_cumulative("document_scores", "chunk_cu", chunk_cu, len(keys))
    dispatch.check_cumulative("document_scores", "bank_cu", bank_cu, len(chunk_cu) - 1)
    dispatch.check_numbers("document_scores", "context_bank", context_bank, len(query_cu) - 1)
    learns = torch.is_grad_enabled() and (query.requires_grad or keys.requires_grad)
    given = (query, query_cu, keys, chunk_cu, context_bank, bank_cu)
    with dispatch.exact(query.device):
        return _documents(*given, scratch_mb * _MB, learns)[0]


def chunk_scores(
    query: Tensor,
    query_cu: Tensor,
    keys: Tensor,
    index: Tensor,
    index_cu: Tensor,
    scratch_mb: float = SCRATCH_MB,
) -> Tensor:
    """Scores of selected chunks, which the gate weighs (SPEC section 3, "The gate").

    query [N, V], query_cu [m+1]; keys [C, V]; index [S] chunks, index_cu [m+1] entries per context
    -> [S] float32 (float64 for float64): the maximum over the context's query tokens of
    <query, keys[index]>; -inf for a context without query tokens. Gradient, dtypes, scratch_mb and
    errors as for document_scores.
    """
    _check("chunk_scores", query, query_cu, keys)
    dispatch.check_numbers("chunk_scores", "index", index)
    dispatch.check_cumulative("chunk_scores", "index_cu", index_cu, len(index))
    with dispatch.exact(query.device):
        return _entries(query, query_cu, keys, index, index_cu, scratch_mb * _MB)[0]


def _check(operation: str, query: Tensor, query_cu: Tensor, keys: Tensor) -> None:
    dispatch.check_floating(operation, query=query, keys=keys)
    dispatch.check_cumulative(operation, "query_cu", query_cu, len(query))
    if query.dim() != 2 or keys.dim() != 2 or query.shape[1] != keys.shape[1]:
        shapes = tuple(query.shape), tuple(keys.shape)
        raise KernelError(f"{operation}: query and keys have shapes {shapes}; need [N, V], [C, V]")


def _one_dtype(query: Tensor, keys: Tensor) -> Tensor:
    """The query as the kernels take it beside such keys: of their dtype, or float32."""
    return (query if query.dtype == keys.dtype else query.float()).contiguous()


@torch.library.custom_op("msa_kernels::document_scores", mutates_args=())
def _documents(
    query: Tensor, query_cu: Tensor, keys: Tensor, chunk_cu: Tensor, context_bank: Tensor,
    bank_cu: Tensor, budget: float, with_index: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Scores [m, n] and, with_index, the query row and chunk of each ([0, 0] without)."""
    if dispatch.takes_triton("document_scores", query, keys):
        from msa_kernels.gpu import scores as gpu

        found = gpu.documents(
            _one_dtype(query, keys), query_cu, keys.contiguous(), None, chunk_cu, context_bank,
            bank_cu, with_index,
        )  # fmt: skip
    else:
        stored = cpu.Stored.of(query, keys)
        found = cpu.documents(
            query, query_cu, stored, chunk_cu, context_bank, bank_cu, budget, with_index
        )
    if with_index:
        return tuple(found)
    return found[0], query_cu.new_empty(0, 0), query_cu.new_empty(0, 0)


@_documents.register_fake
def _(query, query_cu, keys, chunk_cu, context_bank, bank_cu, budget, with_index):
    shape = query_cu.shape[0] - 1, chunk_cu.shape[0] - 1
    index = [query_cu.new_empty(shape if with_index else (0, 0)) for _ in range(2)]
    return query.new_empty(shape, dtype=accumulation_dtype(query, keys)), *index


@torch.library.custom_op("msa_kernels::entry_scores", mutates_args=())
def _entries(
    query: Tensor, query_cu: Tensor, keys: Tensor, index: Tensor, index_cu: Tensor, budget: float
) -> tuple[Tensor, Tensor]:
    """Scores [S] and the query row of each."""
    if dispatch.takes_triton("chunk_scores", query, keys):
        from msa_kernels.gpu import scores as gpu

        query = _one_dtype(query, keys)
        return gpu.entries(query, query_cu, keys.contiguous(), index, index_cu)
    return cpu.entries(query, query_cu, keys, index, index_cu, budget)


@_entries.register_fake
def _(query, query_cu, keys, index, index_cu, budget):
    scores = query.new_empty(index.shape[0], dtype=accumulation_dtype(query, keys))
    return scores, torch.empty_like(index)


@torch.library.custom_op("msa_kernels::scatter_scores", mutates_args=())
def _scatter(
    grad: Tensor, rows: Tensor, chunks: Tensor, begin: Tensor, end: Tensor, query: Tensor,
    query_cu: Tensor, keys: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of query and keys, where score i is <query[rows[i]], keys[chunks[i]]>.

    grad, rows, chunks [E], a row or chunk of -1 takes no part; context c owns begin[c]..end[c]-1.
    """
    if dispatch.takes_triton("document_scores", query, keys):
        from msa_kernels.gpu import scatter as gpu

        span = begin.contiguous(), end.contiguous()
        source = query.contiguous()
        d_query = gpu.to_rows(keys.contiguous(), chunks, grad, rows, span, query_cu, source)
        return d_query, gpu.to_chunks(source, rows, grad, chunks, keys)
    there = rows >= 0
    return cpu.scatter(grad[there], rows[there], chunks[there], query, keys)


@_scatter.register_fake
def _(grad, rows, chunks, begin, end, query, query_cu, keys):
    return torch.empty_like(query), torch.empty_like(keys)


def _save_documents(ctx, inputs, output):
    query, query_cu, keys, _, context_bank, bank_cu, *_ = inputs
    ctx.save_for_backward(query, query_cu, keys, context_bank, bank_cu, *output)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate_documents(ctx, grad, *_):
    query, query_cu, keys, context_bank, bank_cu, scores, rows, chunks = ctx.saved_tensors
    missing = scores == -torch.inf
    rows, chunks = (x.masked_fill(missing, -1).flatten() for x in (rows, chunks))
    first = torch.arange(len(scores), device=scores.device) * scores.shape[1]
    span = first + bank_cu[context_bank], first + bank_cu[context_bank + 1]
    flat = grad.contiguous().flatten()
    d_query, d_keys = _scatter(flat, rows, chunks, *span, query, query_cu, keys)
    return d_query, None, d_keys, *[None] * 5


def _save_entries(ctx, inputs, output):
    query, query_cu, keys, index, index_cu, _ = inputs
    ctx.save_for_backward(query, query_cu, keys, index, index_cu, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate_entries(ctx, grad, _):
    query, query_cu, keys, index, index_cu, scores, rows = ctx.saved_tensors
    rows, chunks = (x.masked_fill(scores == -torch.inf, -1) for x in (rows, index))
    given = (grad.contiguous(), rows, chunks, index_cu[:-1].clone(), index_cu[1:].clone())
    d_query, d_keys = _scatter(*given, query, query_cu, keys)
    return d_query, None, d_keys, None, None, None


_documents.register_autograd(_differentiate_documents, setup_context=_save_documents)
_entries.register_autograd(_differentiate_entries, setup_context=_save_entries)
