"""Parts by name, in order; what each plans is what it measures."""

import pytest

from msa_train.bench.gpu.parts import PARTS, known_parts
from msa_train.bench.gpu.sizes import FULL, TOY
from msa_train.errors import ConfigError


def test_parts_come_in_order_of_value_and_unknown_ones_are_named():
    assert known_parts(["encode", "accuracy"]) == ("accuracy", "encode")
    with pytest.raises(ConfigError, match="'tea': give some of accuracy, route, memory"):
        known_parts(["tea"])


@pytest.mark.parametrize("sizes", [FULL, TOY], ids=["full", "toy"])
def test_no_two_rows_of_a_part_are_the_same(sizes):
    for part in PARTS.values():
        names = [what for what, _ in part.planned(sizes)]
        assert names and len(set(names)) == len(names)
