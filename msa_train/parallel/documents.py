"""Document parallelism: ranks that share a sample, each encoding a part of its documents.

A document's states depend on its own tokens alone (SPEC section 1), and contexts need no more of
them than the pooled states, about one row in 64 tokens. So those alone go between the ranks: whole
banks are gathered before the contexts read them, and their gradients are summed and scattered back.
Or they stay where they are, and what contexts find goes between (msa_train.model.sharded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from msa_train.parallel.groups import GRACE_S, DeepSpeedGroups


@dataclass(frozen=True)
class DocumentGroup:
    """`size` adjacent data-parallel ranks that read the same samples; this one is `rank` of them.

    replica: which of the `replicas` groups it is: they read different samples. group: the processes
    (None: this rank is alone, and nothing is sent).
    """

    size: int = 1
    rank: int = 0
    replica: int = 0
    replicas: int = 1
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, size: int, timeout_s: float) -> DocumentGroup:
        """Every rank must call. size: divides the data-parallel ranks. timeout_s: of the
        settings; the watchdog comes before the group gives up."""
        ranks = DeepSpeedGroups.get_data_parallel_world_size()
        replica, rank = divmod(DeepSpeedGroups.get_data_parallel_rank(), size)
        own = None
        if size > 1:
            mine = dist.get_process_group_ranks(DeepSpeedGroups.get_data_parallel_group())
            mine = mine[replica * size : (replica + 1) * size]
            every: list[list[int]] = [[]] * dist.get_world_size()
            dist.all_gather_object(every, mine)  # all ranks make all groups, in the same order
            for members in sorted({tuple(each) for each in every}):
                made = dist.new_group(list(members), timeout=timedelta(seconds=timeout_s + GRACE_S))
                own = made if members == tuple(mine) else own
        return cls(size, rank, replica, ranks // size, own)

    def gather(self, states: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """Each of `states` [own count, ...] as [sum of counts, ...] of all ranks in order; without
        a graph. counts: rows of every rank."""
        if self.group is None:
            return list(states)
        found = {}
        for places in _by_dtype(states):
            flat = _padded(_joined([states[i].detach() for i in places]), max(counts))
            shares = [torch.empty_like(flat) for _ in counts]
            dist.all_gather(shares, flat, group=self.group)
            pieces = zip(shares, counts, strict=True)
            whole = torch.cat([share[:count] for share, count in pieces])
            found |= zip(places, _parted(whole, [states[i] for i in places]), strict=True)
        return [found[i] for i in range(len(states))]

    def scatter(self, gradients: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """Of the sum over all ranks of each gradient [sum of counts, ...] this rank's rows."""
        if self.group is None:
            return list(gradients)
        found = {}
        for places in _by_dtype(gradients):
            flat = _joined([gradients[i] for i in places])
            own = flat.new_empty(max(counts), flat.shape[1])
            shares = [_padded(share, max(counts)) for share in flat.split(list(counts))]
            dist.reduce_scatter(own, shares, group=self.group)
            own = own[: counts[self.rank]]
            found |= zip(places, _parted(own, [gradients[i] for i in places]), strict=True)
        return [found[i] for i in range(len(gradients))]

    def exchange(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """Rows for every rank in order, `send` many -> those from every rank in order, `receive`
        many; without a graph."""
        found = rows.new_empty(sum(receive), *rows.shape[1:])
        counts = list(receive), list(send)
        dist.all_to_all_single(found, rows.contiguous(), *counts, group=self.group)
        return found


def _by_dtype(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Places of the tensors of each dtype: they are sent together."""
    dtypes = dict.fromkeys(each.dtype for each in tensors)
    return [[i for i, each in enumerate(tensors) if each.dtype == dtype] for dtype in dtypes]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """[rows, all their columns]"""
    return torch.cat([each.flatten(1) for each in tensors], 1)


def _parted(joined: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The columns of `joined` as tensors of the shapes of `like`, but for the rows."""
    columns = joined.split([each[:0].flatten(1).shape[1] for each in like], 1)
    pairs = zip(columns, like, strict=True)
    return [part.reshape(len(joined), *each.shape[1:]) for part, each in pairs]


def _padded(rows: Tensor, count: int) -> Tensor:
    """Contiguous, with `count` rows: gloo sends equally many of every rank."""
    if len(rows) == count:
        return rows.contiguous()
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])
