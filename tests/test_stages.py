import pytest

from data_pipeline.settings import StageData
from msa_train.errors import ConfigError
from msa_train.stages import Schedule, Stage

STAGES = (
    Stage("router", 1.0, steps=4, warmup_steps=2, trains="router"),
    Stage("main", 1.0, steps=6, final_lr=0.5),
    Stage("again", 2.0, tokens=900, warmup_steps=4),
)
SCHEDULE = Schedule(STAGES, (4, 6, 8))
DRAWS = {"steps": 5, "draws_from": ("main",), "data": StageData(weights={"niah": 1})}


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
        ({"steps": 3, "stop_after": 4}, "stop_after is 4, but it has 3 steps"),
        (DRAWS | {"steps": None, "tokens": 9}, "tokens is 9 with draws_from: give steps"),
        (DRAWS | {"epochs": 2}, "epochs is 2 with draws_from"),
        (DRAWS | {"stop_after": 1}, "stop_after is 1 with draws_from"),
        (DRAWS | {"data": StageData()}, r"data\.weights is None with draws_from"),
        (DRAWS | {"data": StageData(weights={"niah": 0})}, r"data\.weights is {'niah': 0}"),
        (
            DRAWS | {"data": StageData(40, weights={"niah": 1})},
            r"data\.document_tokens is given with draws_from, whose samples are built already",
        ),
        ({"steps": 1, "lm_weight": 0, "router_weight": 0}, "make one positive"),
    ],
)
def test_impossible_stages_are_refused_by_name(settings, words):
    with pytest.raises(ConfigError, match=words):
        Stage("one", 1.0, **settings)


def test_a_stage_that_ends_early_keeps_its_rates_and_one_that_draws_has_its_own_steps():
    stages = (
        STAGES[0],
        Stage("main", 1.0, steps=6, final_lr=0.5, stop_after=2),
        Stage("d", 3.0, **DRAWS),
    )
    schedule = Schedule.of(stages, (8, 12), 2)
    assert schedule.steps == (4, 2, 5) and schedule.total == 11
    rates = [schedule.learning_rate(step) for step in range(11)]
    assert (
        rates[:6] == [SCHEDULE.learning_rate(step) for step in range(6)] and rates[6:] == [3.0] * 5
    )
    assert Schedule.of(stages, (8,), 2).steps == (4,)
