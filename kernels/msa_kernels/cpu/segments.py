"""Maximum over consecutive stretches of ragged lengths, without padding and without a sort."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_max(
    values: Tensor, starts: Tensor, lengths: Tensor, with_index: bool
) -> tuple[Tensor, Tensor | None]:
    """Maxima of values[:, starts[i] : starts[i] + lengths[i]] and, on demand, where they stand.

    values [r, c]; starts, lengths [s], every length at least 1 -> [r, s], and [r, s] int64 column
    of the first maximum. Doubling: after level j, column i holds the maximum of 2^j columns from i;
    a stretch is the union of two such windows, so that the work is c * log2(longest stretch).
    """
    place = None
    if with_index:
        place = torch.arange(values.shape[1], device=values.device).expand_as(values)
    longest, shortest = int(lengths.max()), int(lengths.min())
    if longest == 1:
        if len(starts) == values.shape[1]:
            return values, place
        return values[:, starts], None if place is None else place[:, starts]
    out = values.new_empty(len(values), len(starts))
    index = None if place is None else place.new_empty(out.shape)
    window = 1
    while window <= longest:
        if 2 * window > shortest:
            own = ((lengths >= window) & (lengths < 2 * window)).nonzero().squeeze(1)
            first = starts[own]
            second = first + lengths[own] - window
            best, at = _larger(values, place, first, second)
            out[:, own] = best
            if index is not None:
                index[:, own] = at
        window *= 2
        if window <= longest:
            values, place = _double(values, place, window // 2)
    return out, index


def _larger(values: Tensor, place: Tensor | None, first: Tensor, second: Tensor):
    """Columns `first` or `second`, whichever is larger; `first` among equals."""
    a, b = values[:, first], values[:, second]
    if place is None:
        return torch.maximum(a, b), None
    return torch.maximum(a, b), torch.where(b > a, place[:, second], place[:, first])


def _double(values: Tensor, place: Tensor | None, window: int) -> tuple[Tensor, Tensor | None]:
    """Windows of 2 * window from windows of window columns."""
    a, b = values[:, :-window], values[:, window:]
    if place is None:
        return torch.maximum(a, b), None
    return torch.maximum(a, b), torch.where(b > a, place[:, window:], place[:, :-window])


def first_place(scores: Tensor, values: Tensor) -> Tensor:
    """[r, c] the first place on axis 1 of scores [r, t, c] that reaches values [r, c]."""
    t = scores.shape[1]
    places = torch.arange(t, dtype=torch.int32, device=scores.device)[:, None]
    return torch.where(scores == values[:, None], places, t - 1).amin(1).long()
