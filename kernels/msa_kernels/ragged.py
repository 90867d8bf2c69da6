"""Packed sequences: cumulative lengths, and the padded batches that dense kernels want.

`cu` is int64 [count+1], first entry 0: sequence i holds rows cu[i]..cu[i+1]-1 of a packed tensor.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def cumulative(lengths: Tensor) -> Tensor:
    """[count] lengths -> [count+1] cumulative lengths, int64."""
    cu = torch.zeros(len(lengths) + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=cu[1:])
    return cu


def chunk_offsets(cu_seqlens: Tensor, chunk_size: int) -> Tensor:
    """Cumulative number of chunks of each document (SPEC section 2, "Chunks").

    cu_seqlens [n+1] tokens -> [n+1]. A document of L tokens has ceil(L / chunk_size) chunks; an
    empty document has none.
    """
    return cumulative((cu_seqlens.diff() + chunk_size - 1) // chunk_size)


def chunk_token_offsets(cu_seqlens: Tensor, chunk_size: int) -> Tensor:
    """Cumulative number of tokens of each chunk: [C+1] from documents [n+1]."""
    chunk_cu = chunk_offsets(cu_seqlens, chunk_size)
    counts = chunk_cu.diff()
    document_start = cu_seqlens[:-1] - chunk_cu[:-1] * chunk_size
    chunk = torch.arange(int(chunk_cu[-1]), device=cu_seqlens.device)
    starts = chunk * chunk_size + document_start.repeat_interleave(counts)
    return torch.cat([starts, cu_seqlens[-1:]])


def repeated(values: Tensor, counts: Tensor, total: int) -> Tensor:
    """values[i] counts[i] times, `total` int64 in all, for which an accelerator is not asked.

    torch's own operation wakes all threads on a CPU, however few values there are: beside a search
    that is most of its time."""
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return values.repeat_interleave(counts, output_size=total)
    return torch.from_numpy(np.repeat(values.numpy(), counts.numpy()))


def segment_ids(cu: Tensor, total: int | None = None) -> Tensor:
    """[cu[-1]] the sequence that each packed row belongs to. total: cu[-1], where it is known: the
    host would wait for it."""
    return torch.arange(len(cu) - 1, device=cu.device).repeat_interleave(
        cu.diff(), output_size=total
    )


def similar_lengths(
    lengths: list[int], slack: int = 512, waste: float = 0.25, limit: int | None = None
) -> list[list[int]]:
    """Groups of non-empty sequences whose padding to the longest of the group stays small.

    Padding of up to `slack` rows, or of `waste` times the real rows, is cheaper than another round
    of kernel launches. `limit` bounds the padded rows of a group (one sequence always fits).
    Every group lists its sequences in ascending order.
    """
    order = sorted((i for i, n in enumerate(lengths) if n > 0), key=lambda i: -lengths[i])
    groups: list[list[int]] = []
    longest = real = 0
    for i in order:
        padded = longest * (len(groups[-1]) + 1) if groups else 0
        fits = groups and padded - real - lengths[i] <= max(slack, waste * (real + lengths[i]))
        if not fits or (limit is not None and padded > limit):
            groups.append([])
            longest, real = lengths[i], 0
        groups[-1].append(i)
        real += lengths[i]
    return [sorted(group) for group in groups]


def padded_rows(cu: Tensor, members: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Rows of a padded batch of the sequences `members` [r]: (rows [r, width], real [r, width]).

    Padding repeats the sequence's last row (row 0 for an empty sequence): gathered values stay
    finite, and a padded copy can win no maximum against the row it repeats.
    """
    starts, lengths = cu[members], cu[members + 1] - cu[members]
    place = torch.arange(width, device=cu.device)
    last = (lengths - 1).clamp(min=0)
    rows = starts[:, None] + torch.minimum(place, last[:, None])
    rows = torch.where(lengths[:, None] > 0, rows, 0)
    return rows, place < lengths[:, None]
