"""Tokens are drawn as often as their probabilities say, and again from the same seed."""

import pytest
import torch

from msa_train.errors import ConfigError
from msa_train.memory.engine import sampling as module
from msa_train.memory.engine.sampling import Draws, Sampling, choose_tokens

LOGITS = torch.tensor([0.5, 2.0, 1.0, -1.0, 2.0])
DRAWS = 4000


def shares(sampling):
    draws = Draws(sampling)
    drawn = choose_tokens(LOGITS.expand(DRAWS, 5), [draws.next() for _ in range(DRAWS)])
    return torch.bincount(torch.tensor(drawn), minlength=5) / DRAWS


def plainly(logits, draw):
    """A token of logits [vocabulary], as the definition says it, over the whole vocabulary."""
    if draw is None:
        return int(logits.argmax())
    logits = logits.double()
    shares = ((logits - logits.max()) / draw.temperature).softmax(0)
    tokens = torch.arange(len(shares))
    if draw.top_p < 1:
        shares, tokens = shares.sort(descending=True, stable=True)
        kept = int((shares.cumsum(0) - shares < draw.top_p).sum())
        shares, tokens = shares[:kept], tokens[:kept]
    reached = shares.cumsum(0)
    place = int(torch.searchsorted(reached, draw.number * reached[-1], right=True))
    return int(tokens[min(place, len(tokens) - 1)])


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


@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_logits_that_are_no_numbers_give_a_token_of_the_vocabulary(top_p):
    draw = Draws(Sampling(1.0, top_p)).next()
    assert 0 <= choose_tokens(torch.full((1, 5), torch.nan), [draw])[0] < 5


def test_a_seed_draws_the_same_again():
    def draw(seed):
        draws = Draws(Sampling(1.0, 0.9, seed))
        return [choose_tokens(LOGITS[None], [draws.next()])[0] for _ in range(20)]

    assert draw(3) == draw(3) != draw(4)
    assert draw(3)[:8] == [1, 1, 2, 1, 4, 4, 1, 4]  # as in every version since there are seeds


@pytest.mark.parametrize("most", [1, 4, 30, 1000])
@pytest.mark.parametrize("together", [False, True])
def test_rows_are_drawn_as_one_by_one_over_the_whole_vocabulary(most, together, monkeypatch):
    """Few distinct logits, so that the likeliest end in the middle of equal ones."""
    monkeypatch.setattr(module, "_LIKELIEST", most)
    if together:  # as on a GPU
        monkeypatch.setattr(module, "_groups", lambda rows, _: [rows] if rows else [])
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(24, 300, generator=random).mul(4).round().to(torch.bfloat16)
    settings = [
        Sampling(),
        *(
            Sampling(t, p, seed)
            for seed, t in enumerate((0.3, 1.0, 4.0))
            for p in (1e-9, 0.5, 0.99, 1)
        ),
    ]
    for offset in range(3):
        rows = [Draws(settings[(row + offset) % len(settings)]).next() for row in range(24)]
        assert choose_tokens(logits, rows) == list(map(plainly, logits, rows))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("temperature", -1.0), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.5),
     ("seed", 1 << 64)],
)  # fmt: skip
def test_impossible_settings_are_refused(setting, value):
    with pytest.raises(ConfigError, match=f"{setting} is"):
        Sampling(**{setting: value})
