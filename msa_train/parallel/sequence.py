"""Sequence parallelism: tensor-parallel ranks that split the residual stream along its tokens.

Norms and the residual stream then lie on one rank each (Korthikanti et al. 2022); Megatron's layers
gather the tokens before a product and scatter the sums behind it. Every rank has equally many rows,
so at most one row less than there are ranks is padding, at the end, which nothing reads. What a
router reads of normed states are a few rows and the means of chunks: those alone are summed over
the ranks, not the stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.parallel_state import get_tensor_model_parallel_rank as tensor_rank
from megatron.core.parallel_state import get_tensor_model_parallel_world_size as tensor_size
from torch import Tensor


def padded(rows: Tensor) -> Tensor:
    """[N, ...] with rows of zeros behind, so that the ranks can have equally many."""
    missing = -len(rows) % tensor_size()
    return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, missing)) if missing else rows


@dataclass(frozen=True)
class SplitStates:
    """States [N, d] of a stream that lie on all ranks, read as a tensor is: some rows, or a part.

    own [n, d]: this rank's. first: where they begin, counted from the first token of the part.
    """

    own: Tensor
    first: int

    @classmethod
    def of(cls, own: Tensor) -> SplitStates:
        """The whole stream."""
        return cls(own, tensor_rank() * len(own))

    def __getitem__(self, rows: slice | Tensor) -> SplitStates | Tensor:
        """Rows [R] by number: on every rank, where their gradients must be alike. Or the part
        without the first tokens, or of those alone (whose end then nothing looks beyond)."""
        if isinstance(rows, slice):
            return SplitStates(self.own, self.first - (rows.start or 0))
        if not len(self.own):
            return self.own[rows]
        places = rows - self.first
        mine = (places >= 0) & (places < len(self.own))
        found = self.own[places.clamp(0, len(self.own) - 1)]
        found = torch.where(mine[:, None], found, 0.0)
        return tensor_parallel.reduce_from_tensor_model_parallel_region(found)

    def chunk_mean(self, doc_cu: Tensor, chunk_size: int, token_cu: Tensor) -> Tensor:
        """Of the documents that the stream begins with, as msa_kernels.chunk_mean; on every rank,
        where gradients must be alike."""
        counts = token_cu.diff()
        own = self.own.to(torch.promote_types(self.own.dtype, torch.float32))
        sums = own.new_zeros(len(counts), own.shape[1])
        if len(counts):
            tokens = torch.arange(self.first, self.first + len(own), device=own.device)
            chunks = torch.searchsorted(token_cu, tokens, right=True) - 1
            own = torch.where((chunks < len(counts))[:, None], own, 0.0)  # contexts, and padding
            sums = sums.index_add(0, chunks.clamp(max=len(counts) - 1), own)
        means = sums / counts[:, None]
        return tensor_parallel.reduce_from_tensor_model_parallel_region(means).to(self.own.dtype)

    def split_anew(self, count: int) -> Tensor:
        """This rank's share [n', d] of the first `count` tokens of this part alone, padded."""
        begin, end = (min(max(each, 0), count) for each in (self.first, self.first + len(self.own)))
        own = self.own[begin - self.first : end - self.first]
        whole = padded(F.pad(own, (0, 0, begin, count - end)))
        return tensor_parallel.reduce_scatter_to_sequence_parallel_region(whole)
