"""The two losses, as sums: the trainer divides by global counts (SPEC section 3)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from msa_train.model.config import RouterConfig
from msa_train.model.router import Routing


@dataclass
class Losses:
    """Sums of one micro-batch."""

    lm: Tensor  # sum over labelled tokens
    router: Tensor  # sum over contexts with a positive, averaged over the loss layers
    routings: dict[int, Routing]


def router_loss_sum(
    scores: Tensor,
    positives: Tensor,
    masked: Tensor,
    router: RouterConfig,
    pairs: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Sum over contexts with a positive of the contrastive loss of one router layer.

    scores [m, n] float32, -inf for documents that do not exist for the context; positives and
    masked [m, n] bool; masked documents are neither positive nor negative. pairs: context and
    document of each positive, where they are known; on a GPU the host would wait for their number.
    A scalar, 0 when no context has a positive.

        L = -(1/|P|) sum_{i in P} log( e^{s_i/tau} / (e^{s_i/tau} + sum_{j not in P} e^{s_j/tau}) )
    """
    temperature = min(max(router.temperature, 0.001), 0.5)
    logits = (scores / temperature).masked_fill(masked, -math.inf)
    context, document = positives.nonzero(as_tuple=True) if pairs is None else pairs
    rivals = positives if router.loss == "infonce_decoupled" else torch.zeros_like(positives)
    # A finite floor instead of -inf: a context without negatives has a loss of exactly 0.
    negatives = logits.masked_fill(rivals, -math.inf).clamp(min=-1e30).logsumexp(1)
    positive = logits[context, document]
    if router.loss == "infonce_decoupled":
        each = torch.logaddexp(positive, negatives[context]) - positive
    else:
        each = negatives[context] - positive
    share = positives.sum(1).clamp(min=1)[context]
    return (each / share).sum()


def token_loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of next-token cross entropies of logits [T, vocabulary] against labels [T], float32."""
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")


def stale_loss_sum(
    scores: Tensor,
    stale: Tensor,
    positives: Tensor,
    router: RouterConfig,
    pairs: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The same with stale negatives alone: each positive against documents of earlier banks.

    scores [m, n] of the bank and stale [m, q] must carry no gradient to any key: keys of today
    could otherwise lower this loss by all moving away from those of yesterday, question or not.
    """
    none = torch.zeros_like(stale, dtype=torch.bool)
    return router_loss_sum(
        torch.cat([scores, stale], 1),
        torch.cat([positives, none], 1),
        torch.cat([~positives, none], 1),
        router,
        pairs,
    )
