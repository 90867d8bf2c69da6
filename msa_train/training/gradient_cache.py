"""The exact gradient cache: banks of any size in the activations of one group of documents.

Documents depend on nothing but themselves (SPEC section 1): encode them without a graph, group by
group; let the contexts read the pooled states and take the loss back to them; then encode every
group once more, with a graph, and take the states' gradients further back. The gradients are those
of the plain step; the price is a second encoding of the documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from msa_train.model.batch import MemoryBatch, PackedDocuments
from msa_train.model.megatron import Losses

Weigh = Callable[[Losses], Tensor]


class Differentiator(Protocol):
    """What the cache needs of an Engine."""

    def __call__(self, *args: Any) -> Any: ...

    def backward(self, loss: Tensor) -> None: ...

    def backward_once_scaled(self, loss: Tensor) -> None: ...

    def most(self, count: int) -> int: ...


@dataclass(frozen=True)
class GradientCache:
    """group_tokens: document tokens that are encoded with a graph at once (None: all of a batch,
    the plain step)."""

    engine: Differentiator
    group_tokens: int | None

    def backward(self, batch: MemoryBatch, weigh: Weigh) -> Losses:
        """Add the gradients of weigh(losses of the batch); returns the losses."""
        groups = self._groups(batch)
        # Every forward and backward may be a collective: all ranks do as many, idle ones for show.
        rounds = self.engine.most(len(groups)) if self.group_tokens is not None else 1
        if rounds == 1:
            losses = self.engine(batch)
            self.engine.backward(weigh(losses))
            return losses
        idle = [groups[-1]] * (rounds - len(groups))
        with torch.no_grad():
            parts = [self.engine(group) for group in (*groups, *idle)][: len(groups)]
        memory = tuple(torch.cat(states).requires_grad_() for states in zip(*parts, strict=True))
        losses = self.engine(batch, memory)
        self.engine.backward(weigh(losses))
        first = 0
        for group, states in zip(groups, parts, strict=True):
            last = first + len(states[0])
            self._take_further(group, [_rows(state.grad, first, last) for state in memory])
            first = last
        for group in idle:
            self._take_further(group, [None] * len(memory))
        return losses

    def _groups(self, batch: MemoryBatch) -> list[PackedDocuments]:
        documents = PackedDocuments(batch.doc_tokens, batch.doc_cu)
        return [documents] if self.group_tokens is None else documents.groups(self.group_tokens)

    def _take_further(self, group: PackedDocuments, gradients: list[Tensor | None]) -> None:
        """Encode a group with a graph and take its pooled states' gradients back through it."""
        loss = torch.zeros((), device=group.tokens.device)
        for state, gradient in zip(self.engine(group), gradients, strict=True):
            loss = loss + (state * (0.0 if gradient is None else gradient)).sum()
        self.engine.backward_once_scaled(loss)


def _rows(gradient: Tensor | None, first: int, last: int) -> Tensor | None:
    return None if gradient is None else gradient[first:last]
