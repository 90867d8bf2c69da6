"""When a loss jumps."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

# On a smooth curve the values lie so close together that noise would count as a jump.
LEAST_SPREAD = 0.01  # of the median


class SpikeWatch:
    """Watches the logged values of one loss.

    A spike is a value that is not finite, or above the median of the last `window` values by more
    than `spreads` times their median distance from it. Values before there are `least` of them are
    never called so.
    """

    def __init__(self, spreads: float, window: int = 50, least: int = 10):
        self._spreads, self._least = spreads, least
        self._values: deque[float] = deque(maxlen=window)
        self._high = False

    def sees(self, loss: float) -> bool:
        """Whether a spike begins with this value; while it lasts, the answer is False."""
        high, was_high = loss > self._limit() or not math.isfinite(loss), self._high
        self._high = high
        if math.isfinite(loss):  # a new plateau becomes the measure after half a window
            self._values.append(loss)
        return high and not was_high

    def _limit(self) -> float:
        if len(self._values) < self._least:
            return math.inf
        middle = median(self._values)
        spread = median(abs(value - middle) for value in self._values)
        return middle + self._spreads * max(spread, LEAST_SPREAD * abs(middle))
