"""Tokens are drawn as often as their probabilities say, and again from the same seed."""

import pytest
import torch

from msa_train.errors import ConfigError
from msa_train.memory.engine.sampling import Sampler, Sampling

LOGITS = torch.tensor([0.5, 2.0, 1.0, -1.0, 2.0])
DRAWS = 4000


def shares(sampling):
    sampler = Sampler(sampling)
    drawn = torch.tensor([sampler.choose(LOGITS) for _ in range(DRAWS)])
    return torch.bincount(drawn, minlength=5) / DRAWS


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_shares_are_those_of_the_softmax(temperature):
    expected = (LOGITS / temperature).softmax(0)
    assert (shares(Sampling(temperature)) - expected).abs().max() < 0.03


def test_top_p_keeps_the_likeliest_and_no_more():
    expected = LOGITS.softmax(0)
    kept = expected.index_fill(0, torch.tensor([0, 3]), 0)  # the others together pass 0.85
    assert kept.sum() > 0.85 > kept.sum() - expected[2]
    drawn = shares(Sampling(1.0, 0.85))
    assert drawn[[0, 3]].tolist() == [0, 0]
    assert (drawn - kept / kept.sum()).abs().max() < 0.03
    assert shares(Sampling(1.0, 1e-9))[1] == 1  # the likeliest alone, the first of equals


def test_a_seed_draws_the_same_again():
    def draw(seed):
        sampler = Sampler(Sampling(1.0, 0.9, seed))
        return [sampler.choose(LOGITS) for _ in range(20)]

    assert draw(3) == draw(3) != draw(4)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("temperature", -1.0), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.5),
     ("seed", 1 << 64)],
)  # fmt: skip
def test_impossible_settings_are_refused(setting, value):
    with pytest.raises(ConfigError, match=f"{setting} is"):
        Sampling(**{setting: value})
