"""The torch truth of every operation, empty cases included.

Slow and simple on purpose; differentiable by autograd; every dtype, float64 included. Arguments and
results are those of the public function of the same name, which is tested against this one.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from msa_kernels.ragged import cumulative


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 where an input is float64 (gradient checks)."""
    double = any(x.dtype == torch.float64 for x in tensors)
    return torch.float64 if double else torch.float32


def chunk_mean(x: Tensor, cu_seqlens: Tensor, chunk_size: int) -> Tensor:
    """Chunk j of a document is its tokens j*chunk_size .. min((j+1)*chunk_size, length)-1."""
    wide = x.to(accumulation_dtype(x))
    means = [
        wide[start : min(start + chunk_size, end)].mean(0)
        for begin, end in _spans(cu_seqlens)
        for start in range(begin, end, chunk_size)
    ]
    return (torch.stack(means) if means else wide[:0]).to(x.dtype)


def norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    def one(x: Tensor, weight: Tensor) -> Tensor:
        wide = x.to(accumulation_dtype(x))
        normed = wide / (wide.square().mean(2, keepdim=True) + eps).sqrt() * weight
        a, b = normed.chunk(2, dim=2)
        c, s = cos[:, None], sin[:, None]
        return torch.cat([a * c - b * s, b * c + a * s], 2).to(x.dtype)

    return one(q, q_weight), one(k, k_weight)


def document_scores(
    query: Tensor,
    query_cu: Tensor,
    keys: Tensor,
    chunk_cu: Tensor,
    context_bank: Tensor,
    bank_cu: Tensor,
) -> Tensor:
    dtype = accumulation_dtype(query, keys)
    query, keys = query.to(dtype), keys.to(dtype)
    nothing = query.new_tensor(-math.inf)
    rows = []
    for context, (start, end) in enumerate(_spans(query_cu)):
        row = [nothing] * (len(chunk_cu) - 1)
        bank = int(context_bank[context])
        for document in range(int(bank_cu[bank]), int(bank_cu[bank + 1])):
            chunks = keys[chunk_cu[document] : chunk_cu[document + 1]]
            if start < end and len(chunks):
                row[document] = _first_maximum(query[start:end] @ chunks.T)
        rows.append(torch.stack(row) if row else query.new_empty(0))
    return torch.stack(rows) if rows else query.new_empty(0, len(chunk_cu) - 1)


def chunk_scores(
    query: Tensor, query_cu: Tensor, keys: Tensor, index: Tensor, index_cu: Tensor
) -> Tensor:
    dtype = accumulation_dtype(query, keys)
    query, keys = query.to(dtype), keys.to(dtype)
    scores = []
    for (start, end), (first, last) in zip(_spans(query_cu), _spans(index_cu), strict=True):
        for chunk in index[first:last].tolist():
            if start == end:
                scores.append(query.new_tensor(-math.inf))
            else:
                scores.append(_first_maximum(query[start:end] @ keys[chunk : chunk + 1].T))
    return torch.stack(scores) if scores else query.new_empty(0)


def top_documents(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, index = scores.sort(dim=1, descending=True, stable=True)
    values, index = values[:, :k], index[:, :k]
    return values, index.masked_fill(values == -math.inf, -1)


def select_chunks(index: Tensor, chunk_cu: Tensor) -> tuple[Tensor, Tensor]:
    chunks: list[int] = []
    counts = []
    for row in index.tolist():
        before = len(chunks)
        for document in sorted(d for d in row if d >= 0):
            chunks += range(int(chunk_cu[document]), int(chunk_cu[document + 1]))
        counts.append(len(chunks) - before)
    counts = torch.tensor(counts, dtype=torch.int64, device=index.device)
    return torch.tensor(chunks, dtype=torch.int64, device=index.device), cumulative(counts)


def document_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    out = [q[:0]]
    for start, end in _spans(cu_seqlens):
        part = slice(start, end)
        out.append(
            _attention(q[part], k[part], v[part], _causal(end - start, end - start, q), scale)
        )
    return torch.cat(out)


def context_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_cu: Tensor,
    k_cu: Tensor,
    pooled_k: Tensor,
    pooled_v: Tensor,
    index: Tensor,
    index_cu: Tensor,
    bias: Tensor | None,
    memory_from: Tensor | None,
    scale: float,
) -> Tensor:
    out = [q[:0]]
    for context, (start, end) in enumerate(_spans(q_cu)):
        own = slice(int(k_cu[context]), int(k_cu[context + 1]))
        entries = slice(int(index_cu[context]), int(index_cu[context + 1]))
        chunks = index[entries]
        hidden = 0 if memory_from is None else int(memory_from[context])
        rows, keys = end - start, own.stop - own.start
        gate = q.new_zeros(len(chunks)) if bias is None else bias[entries].to(q.dtype)
        head = (torch.arange(rows, device=q.device) < hidden)[:, None]
        memory = gate.expand(rows, -1).masked_fill(head, -math.inf)
        mask = torch.cat([memory, _causal(rows, keys, q)], 1)
        all_k, all_v = torch.cat([pooled_k[chunks], k[own]]), torch.cat([pooled_v[chunks], v[own]])
        out.append(_attention(q[start:end], all_k, all_v, mask, scale))
    return torch.cat(out)


def _spans(cu: Tensor) -> list[tuple[int, int]]:
    return list(itertools.pairwise(cu.tolist()))


def _first_maximum(scores: Tensor) -> Tensor:
    """Maximum of [tokens, chunks] whose gradient reaches one entry: first chunk, first token."""
    place = int(scores.T.reshape(-1).argmax())
    tokens = len(scores)
    return scores[place % tokens, place // tokens]


def _causal(rows: int, keys: int, like: Tensor) -> Tensor:
    """[rows, keys] additive mask; the last row sees every key (bottom-right causal)."""
    hidden = torch.ones(rows, keys, dtype=torch.bool, device=like.device).triu(keys - rows + 1)
    return like.new_zeros(rows, keys).masked_fill(hidden, -math.inf)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """q [t, H, D], k, v [s, G, D], additive mask [t, s] -> [t, H, D]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    logits = torch.einsum("thd,shd->hts", q, k) * scale + mask
    return torch.einsum("hts,shd->thd", logits.softmax(-1), v)
