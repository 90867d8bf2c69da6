"""Triton kernels compiled for cards: within the committed table, without spills by default."""

import json

import pytest

from msa_train.bench.kernels import compiled
from msa_train.bench.kernels.launches import is_default
from msa_train.errors import ConfigError
from tests.bench.kernels.test_launches import TABLE
from tests.house.sources import ROOT

# Cards and launches that stand for the others in every run of the tests.
FEW = [
    (90, "documents: 1 x 32 rows of bfloat16, bfloat16 keys"),
    (80, "norm_rope bfloat16"),
    (90, "documents: 1 x 1 rows of float32, int8 keys"),
]


def committed():
    return {
        (row["launch"], row["kernel"], row["card"]): row for row in json.loads(TABLE.read_text())
    }


def beyond(rows):
    """Rows that take more of a card than the table says, or that it does not have."""
    table = committed()
    found = []
    for row in rows:
        limit = table.get((row["launch"], row["kernel"], row["card"]))
        more = ("registers", "spilled", "shared")
        if limit is None or any(row[name] > limit[name] for name in more):
            found.append((row, limit))
    return found


@pytest.mark.parametrize(("capability", "name"), FEW)
def test_kernels_take_what_the_table_says(capability, name):
    rows = compiled.compiled(capability, name)
    assert rows and not beyond(rows)


@pytest.mark.slow
def test_all_kernels_take_what_the_table_says():
    table = committed()
    rows = compiled.measure(sorted({card for _, _, card in table}))
    assert len(rows) == len(table)
    assert not beyond(rows)


def test_every_card_is_in_the_table():
    assert {card for *_, card in committed()} == {f"sm_{number}" for number in compiled.CARDS}


def test_every_block_fits_on_its_card():
    for (*_, card), row in committed().items():
        assert row["shared"] <= compiled.SHARED_BYTES[int(card[3:])]
        assert row["blocks"] >= 1


def test_kernels_of_default_paths_spill_nothing():
    spilling = {key: row for key, row in committed().items() if row["spilled"]}
    assert not [key for key in spilling if is_default(key[0])]


def test_two_blocks_of_scores_share_a_multiprocessor():
    """One reads keys while the other reduces what it has read."""
    for (_, kernel, _), row in committed().items():
        if kernel == "document_maxima":
            assert row["blocks"] >= 2, row


def test_the_page_shows_the_table():
    rows = json.loads(TABLE.read_text())
    assert compiled.table(rows) in (ROOT / "docs/kernels.md").read_text()


def test_an_unknown_card_is_refused():
    with pytest.raises(ConfigError, match="'sm_70': this card is unknown; give sm_80, sm_89"):
        compiled.measure(["sm_70"])
