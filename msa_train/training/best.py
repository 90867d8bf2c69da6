"""Which checkpoint of a run is best, by a number of its held-out samples."""

from __future__ import annotations

from dataclasses import dataclass

from msa_train.config import HELD_OUT_NUMBERS


@dataclass(frozen=True)
class Best:
    """An evaluation that none was better than, by the `number` that training.best names."""

    number: str
    step: int
    value: float

    def or_before(self, before: Best | None) -> Best | None:
        """This one; the one before where this is no better, or not a number."""
        if self.value != self.value:
            return before
        return self if before is None or self._better_than(before) else before

    def _better_than(self, other: Best) -> bool:
        more = HELD_OUT_NUMBERS[self.number.rpartition("/")[2]]
        return self.value > other.value if more else self.value < other.value

    def __str__(self) -> str:
        return f"step {self.step}, {self.number} {self.value:.4g}"
