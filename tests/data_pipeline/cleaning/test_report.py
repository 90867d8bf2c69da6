"""What was removed is counted by rule, with a few short examples."""

from data_pipeline.cleaning.report import Findings, shorten
from tests.data_pipeline.cleaning.conftest import sentence


def test_counts_and_first_examples_by_rule():
    findings = Findings(examples=1)
    findings.note("too_short", id="b", similarity=0.5)
    findings.note("empty", id="a", text="two\n lines")
    findings.note("too_short", id="c")
    assert findings.as_dict() == {
        "empty": {"count": 1, "examples": [{"id": "a", "text": "two lines"}]},
        "too_short": {"count": 2, "examples": [{"id": "b", "similarity": 0.5}]},
    }
    assert list(findings.as_dict()) == ["empty", "too_short"]


def test_long_texts_are_cut_at_200_characters():
    assert shorten("x" * 200) == "x" * 200
    assert shorten("x" * 201) == "x" * 199 + "…"


def test_examples_are_few_and_short(folder):
    made = folder().make({str(i): sentence(1, 100) + "!" * i for i in range(9)})
    _, report = made.clean(examples=2)
    entry = report["passages"]["rules"]["exact_duplicate"]
    assert entry["count"] == 8 and len(entry["examples"]) == 2
    assert len(entry["examples"][0]["text"]) == 200
