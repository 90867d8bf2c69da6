"""The exact gradient cache: banks of any size in the activations of one group of documents.

Documents depend on nothing but themselves (SPEC section 1): encode them without a graph, group by
group; let the contexts read the pooled states, and backpropagate the loss to those; then encode
every group once more, with a graph, and backpropagate the states' gradients through it. The
gradients are those of the plain step; the price is a second encoding of the documents.

The same where ranks share a batch (document parallelism): each encodes its own documents, and the
pooled states and their gradients go between the ranks on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from msa_kernels import chunk_offsets
from torch import Tensor

from msa_train.model.batch import MemoryBatch, PackedDocuments
from msa_train.model.losses import Losses
from msa_train.parallel.documents import DocumentGroup
from msa_train.training.engine import Engine

Weigh = Callable[[Losses], Tensor]


@dataclass(frozen=True)
class GradientCache:
    """group_tokens: document tokens encoded at once with a graph (None: all of a batch at once, the
    plain step). documents: the ranks that share a batch."""

    engine: Engine
    group_tokens: int | None
    documents: DocumentGroup = field(default_factory=DocumentGroup)

    def backward(self, batch: MemoryBatch, weigh: Weigh) -> Losses:
        """Add the gradients of weigh(losses of the batch); returns the losses.

        batch: this rank's share of one, where ranks share.
        """
        groups, spare = self._groups(batch)
        if not groups:
            losses = self.engine(batch)
            self.engine.backward(weigh(losses))
            return losses
        # One group is encoded once: its graph is kept until its states have their gradients.
        once = len(groups) == 1 and self.engine.keeps_graphs
        with torch.set_grad_enabled(once):
            encoded = [self.engine(group) for group in groups]
        counts = self._chunks(batch)
        memory = self._whole(encoded, counts)
        encoded = encoded if once else [None] * len(groups)  # not a second time beside the whole
        losses = self.engine(batch, memory)
        self.engine.backward(weigh(losses))
        gradients = self._own_gradients(memory, counts, spare)
        del memory
        first = 0
        for group, graph in zip(groups, encoded, strict=True):
            states = self.engine(group) if graph is None else graph
            last = first + len(states[0])
            self._backward_through(states, [each[first:last] for each in gradients])
            first = last
        return losses

    def losses(self, batch: MemoryBatch) -> Losses:
        """Of a batch, or of this rank's share of one, without gradients."""
        with torch.no_grad():
            groups, _ = self._groups(batch)
            if not groups:
                return self.engine(batch)
            encoded = [self.engine(each) for each in groups]
            return self.engine(batch, self._whole(encoded, self._chunks(batch)))

    def _groups(self, batch: MemoryBatch) -> tuple[list[PackedDocuments], int]:
        """In which this rank's documents are encoded, and how many of the last are spare: every
        forward and backward may be a collective, so all ranks have equally many. No group:
        documents go with the contexts, in one pass."""
        groups = batch.documents.groups(self.group_tokens)
        rounds = 1
        if self.group_tokens is not None:
            rounds = max(1, self.engine.max_over_ranks(len(groups)))
        if rounds == 1 and self.documents.size == 1:
            return [], 0
        spare = rounds - len(groups)
        return [*groups, *[batch.documents.nothing()] * spare], spare

    def _whole(self, encoded: list[tuple[Tensor, ...]], counts: list[int]) -> tuple[Tensor, ...]:
        """The pooled states of the whole batch, of groups of this rank's documents and of what the
        other ranks have encoded (sharded: this rank's alone); they take gradients."""
        joined = (torch.cat(states).detach() for states in zip(*encoded, strict=True))
        own = [states[: counts[self.documents.rank]] for states in joined]  # nothing of spare ones
        whole = own if self._sharded else self.documents.gather(own, counts)
        return tuple(each.requires_grad_() for each in whole)

    def _own_gradients(
        self, memory: tuple[Tensor, ...], counts: list[int], spare: int
    ) -> list[Tensor]:
        """Of this rank's documents, from the contexts of all ranks that share the batch; then zeros
        for spare ones."""
        gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in memory]
        own = gradients
        if not self._sharded:
            own = self.documents.scatter(gradients, counts)
        if not spare:
            return own
        return [torch.cat([each, each.new_zeros(spare, *each.shape[1:])]) for each in own]

    @property
    def _sharded(self) -> bool:
        """Whether pooled states stay on the rank that encoded their documents."""
        return self.engine.model.shards is not None

    def _chunks(self, batch: MemoryBatch) -> list[int]:
        """Pooled rows of every rank that shares the batch."""
        doc_cu = batch.on_host.doc_cu
        chunk_cu = chunk_offsets(doc_cu, self.engine.model.model.router.chunk_size)
        bounds = (0, -1) if batch.own is None else batch.own.bounds
        return chunk_cu[list(bounds)].diff().tolist()

    def _backward_through(self, states: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Backpropagate the gradients of pooled states through what they were encoded by."""
        loss = torch.zeros((), device=states[0].device)
        for state, gradient in zip(states, gradients, strict=True):
            loss = loss + (state * gradient).sum()
        self.engine.backward(loss, scaled=True)
