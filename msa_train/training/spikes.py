"""Loss spikes: which steps have one, how often, and how far the learning rate is lowered after it.

The loss is what a step's update would lower, L = lm_weight LM + router_weight router over all its
samples and ranks: a part that a stage gives no weight changes nothing, however high it is.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from msa_train.config import LossSpikeConfig
from msa_train.stages import Schedule
from msa_train.training.metrics import Numbers

# Of the median: on a smooth curve values lie so close together that noise would count as a spike.
LEAST_SPREAD = 0.01


def spike_limit(losses: Collection[float], spreads: float) -> float:
    """median + spreads x max(MAD, 0.01 |median|) of some losses; MAD: their median distance from
    their median."""
    middle = median(losses)
    spread = median(abs(loss - middle) for loss in losses)
    return middle + spreads * max(spread, LEAST_SPREAD * abs(middle))


@dataclass
class _State:
    """stage: whose losses these are, of its last steps without a spike. count: spikes of the run;
    in_a_row: see LossSpikeConfig.limit. rolled_back: steps of the run that left no trace in the
    weights. lowered: how often the rate is multiplied by the factor, until step `full_rate_at`
    (None: to the end of the stage)."""

    stage: int = 0
    losses: list[float] = field(default_factory=list)
    count: int = 0
    in_a_row: int = 0
    rolled_back: int = 0
    lowered: int = 0
    full_rate_at: int | None = None


class LossSpikes:
    """Every rank has one, and all see the same losses.

    A step spikes when its loss is above `spike_limit` of the last `window` steps of its stage that
    did not; the first `least` of a stage never do. A loss that is not finite is no spike: such a
    step is skipped under any policy.
    """

    def __init__(self, settings: LossSpikeConfig, schedule: Schedule):
        self._settings, self._schedule, self._state = settings, schedule, _State()
        self.now = False  # whether the last step that was looked at spikes

    @property
    def watched(self) -> bool:
        return self._settings.policy != "off"

    @property
    def too_many(self) -> bool:
        return self._state.in_a_row >= self._settings.limit

    def look(self, step: int, loss: float) -> str | None:
        """What is to be said of a step that spikes; None where it does not. step: from 0."""
        state, settings = self._state, self._settings
        stage = self._schedule.place(step)[0]
        if stage != state.stage:
            state.stage, state.losses, state.in_a_row, state.lowered = stage, [], 0, 0
        limit = math.inf
        if len(state.losses) >= settings.least:
            limit = spike_limit(state.losses, settings.spreads)
        self.now = limit < loss < math.inf
        if self.now:
            self._count(step)
            return (
                f"the loss is {loss:.4g}, above {limit:.4g} (median {median(state.losses):.4g} of "
                f"{len(state.losses)} steps), {state.count} so far"
            )
        if settings.policy != "roll_back":
            state.in_a_row = 0
        if math.isfinite(loss):
            state.losses = [*state.losses, loss][-settings.window :]
        return None

    def _count(self, step: int) -> None:
        state, settings = self._state, self._settings
        state.count += 1
        state.in_a_row += 1
        if settings.policy == "lower":
            state.lowered = 1 + (state.lowered if self.rate_factor(step) < 1 else 0)
            state.full_rate_at = None if settings.steps is None else step + settings.steps

    def rate_factor(self, step: int) -> float:
        """Of the learning rate of a step."""
        state, end = self._state, self._state.full_rate_at
        over = end is not None and step >= end
        if over or self._schedule.place(step)[0] != state.stage:
            return 1.0
        return self._settings.factor**state.lowered

    def roll_back(self, saved: dict[str, Any], steps: int) -> None:
        """The weights are those of a checkpoint of `steps` steps ago: its losses count, and what
        was counted since stays counted."""
        before = _State(**saved)
        same = before.stage == self._state.stage  # else a row of spikes would end where none did
        self._state.losses = before.losses if same else []
        self._state.rolled_back += steps

    def saved(self) -> None:
        """There is a good checkpoint of this step: what is rolled back from here on is little. One
        of the very step that was rolled back is no further than that it went back to."""
        if self._settings.policy == "roll_back" and not self.now:
            self._state.in_a_row = 0

    def numbers(self, step: int) -> Numbers:
        """Of a step, for its log."""
        if not self.watched:
            return {}
        numbers: Numbers = {"loss_spikes": self._state.count}
        if self._settings.policy == "roll_back":
            numbers["rolled_back_steps"] = self._state.rolled_back
        if self._settings.policy == "lower":
            numbers["lr_factor"] = self.rate_factor(step)
        return numbers

    def state_dict(self) -> dict[str, Any]:
        return asdict(self._state) if self.watched else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing where the checkpoint's run did not look for spikes."""
        self._state = _State(**state)
