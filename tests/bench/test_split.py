"""The benchmark of splitting: its texts have the length it says, and all of them are split."""

from msa_train.bench.split import measure
from tests.memory.tiny import tiny_export


def test_a_row_for_each_text_and_size(tmp_path):
    rows = measure(tiny_export(tmp_path / "tiny"), 40_000)
    assert [(row["text"], row["characters"]) for row in rows] == [
        (text, size) for text in ("prose", "letters", "han") for size in (10_000, 40_000)
    ]
    for quarter, whole in zip(rows[::2], rows[1::2], strict=True):
        assert whole["parts"] >= 3 * quarter["parts"] > 3
        assert 0 <= quarter["us_per_character"] < 1000 and whole["seconds"] >= 0
