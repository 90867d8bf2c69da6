import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.sources.base import NumberConfig, place_of


def test_numbers_differ_and_stay_below_the_limit(rng):
    numbers = NumberConfig(limit=1000).draw(rng, 400)
    assert len(set(numbers.tolist())) == 400
    assert numbers.min() >= 0 and numbers.max() < 1000


def test_every_width_is_seen(rng):
    numbers = np.concatenate([NumberConfig().draw(rng, 100) for _ in range(50)])
    widths = np.array([len(str(number)) for number in numbers])
    assert all((widths == width).mean() > 0.03 for width in (2, 3, 4, 5))
    assert (widths == 1).any()
    uniform = NumberConfig(short_share=0).draw(rng, 5000)
    assert (uniform >= 10_000).mean() > 0.85


def test_numbers_come_in_random_order(rng):
    numbers = NumberConfig(short_share=0).draw(rng, 1000)
    assert abs(np.corrcoef(np.arange(1000), numbers)[0, 1]) < 0.15


def test_all_numbers_can_be_drawn_but_not_more(rng):
    assert sorted(NumberConfig(limit=50).draw(rng, 50)) == list(range(50))
    with pytest.raises(DataError, match=r"51 documents.*is 50"):
        NumberConfig(limit=50).draw(rng, 51)


@pytest.mark.parametrize("settings", [{"limit": 0}, {"short_share": 1.5}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(DataError, match=rf"data\.numbers\.{next(iter(settings))}"):
        NumberConfig(**settings)


def test_a_name_alone_tells_its_place():
    places = [place_of(f"document {i}") for i in range(2000)]
    assert place_of("json.dumps") == pytest.approx(0.68023456, abs=1e-7), "on every machine"
    assert min(places) >= 0 and max(places) < 1 and np.mean(places) == pytest.approx(0.5, abs=0.03)
