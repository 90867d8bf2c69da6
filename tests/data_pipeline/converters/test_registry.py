"""The registry of formats, and what all conversions refuse."""

from pathlib import Path

import pytest

from data_pipeline.converters import CONVERTERS, convert
from tests.data_pipeline.converters.files import fails, write_json
from tests.data_pipeline.converters.test_squad import SQUAD

TESTS = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))


@pytest.mark.parametrize("format", CONVERTERS)
def test_every_format_is_described_and_tested(format):
    description = CONVERTERS[format].description
    assert description and "\n" not in description and len(description) <= 80
    assert f'convert("{format}", [' in TESTS, "no test converts it"
    assert f'fails(tmp_path, "{format}", [' in TESTS, "no test gives it something broken"


def test_what_is_asked_for_must_fit_the_format(tmp_path):
    path = write_json(tmp_path / "a.json", SQUAD)
    fails(tmp_path, "squat", [path], "there is no format 'squat': give one of jsonl, squad, ")
    fails(tmp_path, "squad", [path], "squad takes no --all-passages: leave", all_passages=True)
    fails(tmp_path, "squad", [], "nothing to convert")
    fails(tmp_path, "squad", [path], "the split '../x' cannot be", splits=["../x"])
    fails(tmp_path, "squad", [path], "the split '' cannot be", splits=[""])
    fails(tmp_path, "squad", [tmp_path], f"{tmp_path} cannot be read: Is a directory")
    convert("squad", [path], tmp_path / "failed")
    fails(tmp_path, "squad", [path], "failed exists already")
