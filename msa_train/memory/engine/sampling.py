"""How the next token is drawn: greedily, or at a temperature from the likeliest ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from msa_train.errors import ConfigError
from msa_train.model.transfer import sent, uploaded

_LIKELIEST = 1024  # tokens that nearly always hold any top_p
_ROUNDING = 1e-9  # more than float64 loses in a sum of all shares


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


class Draw(NamedTuple):
    """A token is drawn: where a number drawn from 0..1 falls among the shares of the likeliest
    tokens of at least top_p together, at a temperature."""

    temperature: float
    top_p: float
    number: float


class Draws:
    """The draws of one request, from a random generator of its own: of the host, so that they are
    the same on every device and whatever else is served."""

    def __init__(self, sampling: Sampling):
        self._sampling = sampling
        self._random = torch.Generator().manual_seed(sampling.seed)

    def next(self) -> Draw | None:
        """None: the likeliest token, which takes no draw."""
        temperature, top_p = self._sampling.temperature, self._sampling.top_p
        if not temperature:
            return None
        number = torch.rand((), generator=self._random, dtype=torch.float64)
        return Draw(temperature, top_p, float(number))


def choose_tokens(logits: Tensor, draws: Sequence[Draw | None]) -> list[int]:
    """A token of each row of logits [b, vocabulary]: the likeliest where there is no draw.

    On a GPU all rows at once, and one copy of what was chosen to the host. A second one where the
    `_LIKELIEST` tokens of a row, which are looked at first, hold less than its top_p.
    """
    greedy = any(draw is None for draw in draws)
    found = logits.argmax(1) if greedy else logits.new_zeros(len(draws), dtype=torch.int64)
    whole = [row for row, draw in enumerate(draws) if draw and draw.top_p == 1]
    part = [row for row, draw in enumerate(draws) if draw and draw.top_p < 1]
    lacking = torch.zeros_like(found) if part else None
    for rows in (*_groups(whole, logits), *_groups(part, logits)):
        _draw(logits, rows, draws, found, lacking, _LIKELIEST)
    if lacking is None:
        return found.tolist()
    tokens, lacks = torch.stack([found, lacking]).tolist()
    if not any(lacks):
        return tokens
    for rows in _groups([row for row in part if lacks[row]], logits):
        _draw(logits, rows, draws, found, lacking, logits.shape[1])
    return found.tolist()


def _groups(rows: list[int], logits: Tensor) -> list[list[int]]:
    """Rows that are drawn together: on a CPU one by one, as each passes its caches many times."""
    if not rows:
        return []
    return [rows] if logits.is_cuda else [[row] for row in rows]


def _draw(
    logits: Tensor,
    rows: list[int],
    draws: Sequence[Draw | None],
    found: Tensor,
    lacking: Tensor | None,
    most: int,
) -> None:
    """Draws tokens for rows, all with top_p 1 or all below, into found [b].

    Below, of the `most` likeliest tokens; lacking [b]: 1 where those may hold too little.
    """
    [place] = uploaded([rows], logits.device)
    given = torch.tensor([draws[row] for row in rows], dtype=torch.float64)
    temperature, top_p, number = sent(given, logits.device).split(1, dim=1)
    together = slice(rows[0], rows[-1] + 1)  # a view, where they follow one another
    x = logits[together if rows[-1] - rows[0] == len(rows) - 1 else place]
    x = x.to(torch.float64, copy=True)
    shares = x.sub_(x.amax(1, keepdim=True)).div_(temperature).softmax(1)
    if draws[rows[0]].top_p == 1:
        reached = shares.cumsum(1)
        token = _passed(reached, torch.full_like(place, reached.shape[1] - 1)[:, None], number)
    else:
        shares, tokens = _ranked(shares, most)
        reached = shares.cumsum(1)
        before = reached - shares
        kept = (before < top_p).sum(1, keepdim=True)
        kept.clamp_(min=1)  # of NaN none would be, and a GPU that is asked for place -1 is lost
        token = tokens.gather(1, _passed(reached, kept - 1, number))
        if most < logits.shape[1]:
            # Which of those that are as likely as the last one came along is chance.
            sure = (shares > shares[:, -1:]).sum(1)
            lacks = (before < top_p + _ROUNDING).sum(1) > sure
            lacking.index_copy_(0, place, lacks.long())
    found.index_copy_(0, place, token[:, 0])


def _ranked(shares: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The `most` largest of each row and their columns; of equals the first column first."""
    if most >= shares.shape[1]:
        return shares.sort(dim=1, descending=True, stable=True)
    columns = shares.topk(most, 1, sorted=False).indices.sort(1).values
    shares, order = shares.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return shares, columns.gather(1, order)


def _passed(reached: Tensor, last: Tensor, number: Tensor) -> Tensor:
    """[s, 1] where cumulative shares pass a number drawn from 0..1, of those up to `last`."""
    drawn = number * reached.gather(1, last)
    return torch.searchsorted(reached, drawn, right=True).minimum(last)
