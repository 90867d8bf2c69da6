"""Ragged sequences as padded batches for dense attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from msa_kernels.ragged import Padding, similar_lengths

SLACK, WASTE = 128, 0.1  # padded rows of a batch, where the cost is quadratic (measured)
ALIGN = 16  # padded lengths that the fused CPU kernel's matrix products like (measured)


@dataclass(frozen=True)
class Batch:
    """r sequences padded to t query rows, `keys` own keys and s selected chunks each."""

    members: list[int]
    t: int
    keys: int
    s: int

    @property
    def widths(self) -> tuple[int, int, int]:
        return self.t, self.keys, self.s


def make_batches(sizes: list[tuple[int, int, int]], budget: int, itemsize: int) -> list[Batch]:
    """Sequences (t, keys, s) with query rows, in batches whose masks fit the budget if possible."""
    lengths = [keys + s if t else 0 for t, keys, s in sizes]
    limit = budget // (itemsize * max([1, *(t for t, _, _ in sizes)]))
    batches = []
    for members in similar_lengths(lengths, SLACK, WASTE, limit=max(1, limit)):
        t, keys, s = (max(part) for part in zip(*(sizes[i] for i in members), strict=True))
        if t > 1:
            t, keys = (-(-width // ALIGN) * ALIGN for width in (t, keys))
        batches.append(Batch(members, t, keys, s))
    return batches


def batch_padding(cu: Tensor, batches: list[Batch], part: int) -> tuple[Padding, list[int]]:
    """(padding of the packed rows of one part, padded rows of each batch)."""
    order = [i for batch in batches for i in batch.members]
    widths = [batch.widths[part] for batch in batches for _ in batch.members]
    return Padding.of(cu, order, widths), [len(b.members) * b.widths[part] for b in batches]
