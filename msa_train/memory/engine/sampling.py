"""How the next token is drawn: greedily, or at a temperature from the likeliest ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from msa_train.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """temperature 0: always the likeliest token. top_p: draw from the likeliest tokens of at least
    this probability together. seed: the same seed draws the same text, whatever else is served.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature is {self.temperature}: give 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}: give more than 0 and at most 1")
        if not -(1 << 63) <= self.seed < 1 << 63:
            raise ConfigError(f"seed is {self.seed}: give a whole number of at most 64 bits")


class Sampler:
    """Draws the tokens of one request from a random generator of its own."""

    def __init__(self, sampling: Sampling):
        self._sampling = sampling
        self._random = torch.Generator().manual_seed(sampling.seed)

    def choose(self, logits: Tensor) -> int:
        """A token from its logits [vocabulary]."""
        temperature, top_p = self._sampling.temperature, self._sampling.top_p
        logits = logits.to("cpu", torch.float64)
        shares = ((logits - logits.max()) / temperature).softmax(0)
        drawn = torch.rand((), generator=self._random, dtype=torch.float64)
        if top_p == 1:
            return self._at(shares, drawn)
        shares, tokens = shares.sort(descending=True, stable=True)
        reached = shares.cumsum(0)
        kept = int((reached - shares < top_p).sum())
        return int(tokens[self._at(shares[:kept], drawn)])

    @staticmethod
    def _at(shares: Tensor, drawn: Tensor) -> int:
        """The place at which the cumulative shares pass a number drawn from 0..1."""
        reached = shares.cumsum(0)
        return min(
            int(torch.searchsorted(reached, drawn * reached[-1], right=True)), len(shares) - 1
        )
