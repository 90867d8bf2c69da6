import pytest

from msa_train.config import Phase, TrainingConfig
from msa_train.training.schedule import learning_rate, phase_of

CONFIG = TrainingConfig(
    phases=(Phase("router", 4, 1.0, 1.0, 0.1, 1.0), Phase("main", 6, 1.0, 0.5, 1.0, 0.1)),
    lr_warmup_steps=2,
)


def test_phases_follow_one_another():
    assert [phase_of(step, CONFIG)[0].name for step in range(10)] == ["router"] * 4 + ["main"] * 6
    assert phase_of(5, CONFIG)[1] == 1


def test_the_rate_warms_up_stays_and_falls_to_its_end():
    rates = [learning_rate(step, CONFIG) for step in range(10)]
    assert rates[:5] == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert rates[9] == pytest.approx(0.5)
    assert rates[4:] == sorted(rates[4:], reverse=True)
