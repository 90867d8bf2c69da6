"""Metrics of a logged step over all its micro-batches and ranks: losses, tokens, router recall."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from msa_train.model.batch import MemoryBatch
from msa_train.model.losses import Losses
from msa_train.model.transfer import moved

Numbers = dict[str, float]  # of a logged step, by name


class StepMetrics:
    """Sums over a step's micro-batches. labels, contexts: the step's global counts.

    The router's recall is over the contexts that have positives, per router layer.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        group: dist.ProcessGroup,
        device: torch.device,
        labels: float,
        contexts: float,
    ):
        self._layers, self._group = layers, group
        self._labels, self._contexts = max(1.0, labels), max(1.0, contexts)
        self._tokens = [0, 0]  # of memory, of contexts
        # Two losses, then those of recall_sums; they stay on the device until `result`.
        self._sums = torch.zeros(2 + 2 * len(layers) + 1, dtype=torch.float64, device=device)

    def add(self, batch: MemoryBatch, losses: Losses) -> None:
        lm = losses.lm.detach().double() / self._labels
        router = losses.router.detach().double() / self._contexts
        self._tokens[0] += len(batch.doc_tokens)
        self._tokens[1] += len(batch.tokens)
        recalls = recall_sums(batch, losses, self._layers)
        self._sums += torch.cat([torch.stack([lm, router]), recalls])

    def result(self) -> Numbers:
        """Every data-parallel rank must call."""
        sums = torch.cat([self._sums, self._sums.new_tensor(self._tokens)])
        dist.all_reduce(sums, group=self._group)
        lm, router, *recalls, asked, memory_tokens, active_tokens = sums.tolist()
        numbers = {
            "loss/lm": lm,
            "loss/router": router,
            "memory_tokens": memory_tokens,
            "active_tokens": active_tokens,
        }
        for place, layer in enumerate(self._layers):
            at_1, at_k = recalls[2 * place : 2 * place + 2]
            numbers[f"router/layer_{layer}_recall@1"] = at_1 / max(1.0, asked)
            numbers[f"router/layer_{layer}_recall@k"] = at_k / max(1.0, asked)
        return numbers


def recall_sums(batch: MemoryBatch, losses: Losses, layers: Sequence[int]) -> Tensor:
    """[2 layers + 1] over the contexts that have positives: for each layer the sums of hits at 1
    and of recall at K; last the number of those contexts."""
    (asked,) = moved([batch.routed_contexts], batch.positives.device)
    positives = batch.positives[asked]
    sums = []
    for layer in layers:
        found = found_positives(losses.routings[layer].documents[asked], positives)
        sums += [found[:, :1].sum(), (found.sum(1) / positives.sum(1)).sum()]
    return torch.stack([*sums, positives.any(1).sum()])


def found_positives(documents: Tensor, positives: Tensor) -> Tensor:
    """[m, K] whether each selected document is a positive."""
    return positives.gather(1, documents.clamp(min=0)) & (documents >= 0)
