"""Which phase a step belongs to, and its learning rate (SPEC section 3)."""

from __future__ import annotations

from msa_train.config import Phase, TrainingConfig


def phase_of(step: int, config: TrainingConfig) -> tuple[Phase, int]:
    """The phase of a step (from 0) and the step's place in it."""
    for phase in config.phases:
        if step < phase.steps:
            return phase, step
        step -= phase.steps
    raise AssertionError("the run has no such step")


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear from the phase's lr to its final_lr, under the run's linear warm-up."""
    phase, place = phase_of(step, config)
    along = place / max(1, phase.steps - 1)
    rate = phase.lr + (phase.final_lr - phase.lr) * along
    return rate * min(1.0, (step + 1) / max(1, config.lr_warmup_steps))
