"""The exact gradient cache: banks of any size in the activations of one group of documents.

Documents depend on nothing but themselves (SPEC section 1): encode them without a graph, group by
group; let the contexts read the pooled states, and backpropagate the loss to those; then encode
every group once more, with a graph, and backpropagate the states' gradients through it. The
gradients are those of the plain step; the price is a second encoding of the documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from msa_train.model.batch import MemoryBatch, PackedDocuments
from msa_train.model.losses import Losses
from msa_train.training.engine import Engine

Weigh = Callable[[Losses], Tensor]


@dataclass(frozen=True)
class GradientCache:
    """group_tokens: document tokens encoded at once with a graph (None: all of a batch at once, the
    plain step)."""

    engine: Engine
    group_tokens: int | None

    def backward(self, batch: MemoryBatch, weigh: Weigh) -> Losses:
        """Add the gradients of weigh(losses of the batch); returns the losses."""
        rounds = 1
        if self.group_tokens is not None:
            documents = PackedDocuments(batch.doc_tokens, batch.on_host.doc_cu)
            groups = documents.groups(self.group_tokens)
            # Every forward and backward may be a collective: all ranks do equally many, and those
            # with fewer groups repeat one without effect.
            rounds = self.engine.max_over_ranks(len(groups))
        if rounds == 1:
            losses = self.engine(batch)
            self.engine.backward(weigh(losses))
            return losses
        spare = [groups[-1]] * (rounds - len(groups))
        with torch.no_grad():
            parts = [self.engine(group) for group in (*groups, *spare)][: len(groups)]
        memory = tuple(torch.cat(states).requires_grad_() for states in zip(*parts, strict=True))
        losses = self.engine(batch, memory)
        self.engine.backward(weigh(losses))
        first = 0
        for group, states in zip(groups, parts, strict=True):
            last = first + len(states[0])
            own = [None if state.grad is None else state.grad[first:last] for state in memory]
            self._backward_through(group, own)
            first = last
        for group in spare:
            self._backward_through(group, [None] * len(memory))
        return losses

    def _backward_through(self, group: PackedDocuments, gradients: list[Tensor | None]) -> None:
        """Encode a group with a graph and backpropagate the gradients of its pooled states (None:
        zeros) through it."""
        loss = torch.zeros((), device=group.tokens.device)
        for state, gradient in zip(self.engine(group), gradients, strict=True):
            loss = loss + (state * (0.0 if gradient is None else gradient)).sum()
        self.engine.backward(loss, scaled=True)
