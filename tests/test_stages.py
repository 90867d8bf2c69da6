import pytest

from msa_train.errors import ConfigError
from msa_train.stages import Schedule, Stage

STAGES = (
    Stage("router", 1.0, steps=4, warmup_steps=2, trains="router"),
    Stage("main", 1.0, steps=6, final_lr=0.5),
    Stage("again", 2.0, tokens=900, warmup_steps=4),
)
SCHEDULE = Schedule(STAGES, (4, 6, 8))


def test_stages_follow_one_another():
    names = [SCHEDULE.stage(step).name for step in range(SCHEDULE.total)]
    assert names == ["router"] * 4 + ["main"] * 6 + ["again"] * 8
    assert [SCHEDULE.place(step) for step in (0, 5, 17)] == [(0, 0), (1, 1), (2, 7)]


def test_the_rate_warms_up_stays_falls_and_warms_up_again():
    rates = [SCHEDULE.learning_rate(step) for step in range(18)]
    assert rates[:5] == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert rates[9] == 0.5 and rates[4:10] == sorted(rates[4:10], reverse=True)
    assert rates[10:15] == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_an_amount_is_in_samples_or_in_tokens():
    assert STAGES[1].amount(8).samples == 48
    assert STAGES[2].amount(8).tokens == 900 and STAGES[2].amount(8).samples is None
    twice = Stage("twice", 1.0, steps=3, epochs=2)
    assert twice.amount(2).samples == 3
    with pytest.raises(ConfigError, match=r"stages\[twice\]\.epochs is 2"):
        twice.amount(1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "give one of them"),
        ({"steps": 1, "tokens": 1}, "give one of them"),
        ({"steps": 0}, "steps is 0"),
        ({"tokens": 0}, "tokens is 0"),
        ({"steps": 1, "epochs": 0}, "epochs is 0"),
        ({"steps": 1, "final_lr": -1}, "final_lr is -1"),
        ({"steps": 1, "warmup_steps": -1}, "warmup_steps is -1"),
        ({"steps": 1, "lm_weight": 0, "router_weight": 0}, "make one positive"),
    ],
)
def test_impossible_stages_are_refused_by_name(settings, words):
    with pytest.raises(ConfigError, match=words):
        Stage("one", 1.0, **settings)
