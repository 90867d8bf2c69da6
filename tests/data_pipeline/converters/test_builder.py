"""What all formats share: equal passages, ids, questions that are left out."""

import pytest

from data_pipeline.converters.builder import Builder, JudgedQueries
from data_pipeline.dataset import DatasetWriter, Passage, Question
from data_pipeline.errors import DataError
from tests.data_pipeline.converters.files import passages, questions


@pytest.fixture
def builder(tmp_path):
    with DatasetWriter(tmp_path / "unread") as writer:
        yield Builder(writer)
        writer.passage(Passage("last", "", "a dataset needs one"))


def build(folder, add):
    """What `add(builder)` makes of a folder."""
    with DatasetWriter(folder) as writer:
        builder = Builder(writer)
        add(builder)
    return builder.converted()


def test_equal_passages_become_one_with_a_stable_id(tmp_path):
    def add(builder):
        first = builder.passage("A, line 1", "Cats", "Cats  purr.")
        assert builder.passage("A, line 2", " Cats", "Cats\npurr. ") == first
        assert builder.passage("A, line 3", "", "Cats Cats purr.") != first

    converted = [build(tmp_path / name, add) for name in "ab"]
    assert [c.passages for c in converted] == [2, 2]
    assert converted[0].repeated_passages == 1
    assert passages(tmp_path / "a") == passages(tmp_path / "b")
    assert [text for _, text in passages(tmp_path / "a").values()] == [
        "Cats  purr.",
        "Cats Cats purr.",
    ]
    assert all(id[0] == "p" and len(id) == 21 for id in passages(tmp_path / "a"))


def test_ids_of_the_dataset_are_kept_and_those_of_equal_passages_lead_to_the_first(builder):
    assert builder.passage("A, line 1", "Cats", "purr", "7") == "7"
    assert builder.passage("A, line 2", "Cats", "purr", "8") == "7"
    assert builder.passage("A, line 3", "Cats", "purr", "7") == "7"
    assert builder.passage("A, line 4", "Cats", "purr") == "7"
    assert builder.find("B, line 1", "8") == "7"


@pytest.mark.parametrize("known", ["7", "8"])
def test_two_texts_of_one_id_are_an_error_naming_both_places(builder, known):
    builder.passage("A.jsonl, line 1", "Cats", "purr", "7")
    builder.passage("A.jsonl, line 12", "Cats", "purr", "8")
    builder.passage("A.jsonl, line 13", "Dogs", "bark", "9")
    with pytest.raises(DataError, match=rf"^B, line 3: .* id '{known}' .* A.jsonl, line 1: give"):
        builder.passage("B, line 3", "Cats", "hiss", known)
    with pytest.raises(DataError, match=r"another text in A.jsonl, line 13"):
        builder.passage("B, line 3", "Cats", "purr", "9")


def test_places_without_a_line_are_named_too(builder):
    builder.passage("A/0012", "", "purr", "7")
    builder.passage("A, [3].ctxs[4]", "", "bark", "8")
    for id, place in (("7", "A/0012"), ("8", "A, [3].ctxs[4]")):
        with pytest.raises(DataError) as raised:
            builder.passage("B", "", "hiss", id)
        assert f"another text in {place}: " in str(raised.value)


def test_unknown_ids_are_an_error_and_empty_passages_are_none(builder):
    assert builder.passage("A", " ", "\n", "7") is None
    assert builder.find("B", "7") is None
    with pytest.raises(DataError, match=r"B, line 2: there is no passage '8' in the corpus"):
        builder.find("B, line 2", "8")
    assert builder.judged("B", "7") is None
    assert builder.converted().left_out == {"empty passages": 1}


def test_a_question_is_written_clean(tmp_path):
    def add(builder):
        a, b, c = (builder.passage("A", "", text, text) for text in "abc")
        builder.question(
            "Q, line 1", "dev", " why? ", [a, b, a], id="1", answers=["x ", "x", " ", "y"],
            steps=[[b, b], [a, b]], negatives=[c, b, None, c],
        )  # fmt: skip
        builder.question("Q, line 2", "dev", "how?", [a, b], id="2", steps=[[a]])

    assert build(tmp_path / "out", add).questions == {"dev": 2}
    assert questions(tmp_path / "out", "dev") == [
        Question("1", "why?", ("x", "y"), ("a", "b"), (("b",), ("a",)), ("c",)),
        Question("2", "how?", (), ("a", "b")),
    ]


def test_questions_that_cannot_be_asked_are_left_out_and_counted(builder):
    passage = builder.passage("A", "", "purr")
    builder.question("Q", "train", " ", [passage])
    builder.question("Q", "train", "why?", [])
    builder.question("Q", "train", "why?", [None, passage])
    builder.question("Q", "train", "why?", [passage])
    builder.question("Q", "train", "why?", [passage])
    assert builder.converted().questions == {"train": 1}
    assert builder.converted().left_out == {
        "questions without text": 1,
        "questions without a passage that answers them": 1,
        "questions that an empty passage answers": 1,
        "questions given again": 1,
    }


def test_two_questions_of_one_id_are_an_error_naming_both_places(builder):
    passage = builder.passage("A", "", "purr")
    builder.question("Q, line 1", "train", "why?", [passage], id="1")
    builder.question("Q, line 2", "dev", "how?", [passage], id="1")
    with pytest.raises(DataError, match=r"Q, line 3: the question id '1' .* in Q, line 1: give"):
        builder.question("Q, line 3", "train", "how?", [passage], id="1")


def test_half_a_surrogate_pair_is_an_error(builder):
    with pytest.raises(DataError, match="A, line 1: holds half a surrogate pair"):
        builder.passage("A, line 1", "", "\ud800")


def test_judgements_of_a_query_become_one_question(tmp_path):
    def add(builder):
        cats, dogs = (builder.passage("A", "", text, text) for text in ("cats", "dogs"))
        queries = JudgedQueries()
        queries.get("7", "Q, line 1").negatives[dogs] = None
        queries.get("8", "Q, line 2").positives[dogs] = None
        queries.get("7", "Q, line 3").positives[cats] = None
        assert "7" in queries and "9" not in queries
        assert queries.get("7", "elsewhere").where == "Q, line 1"
        queries.write(builder, "train", {"7": "who?", "8": "how?"})
        by_text = JudgedQueries()
        by_text.get("when?", "Q, line 4").positives[cats] = None
        by_text.write(builder, "dev")

    assert build(tmp_path / "out", add).questions == {"train": 2, "dev": 1}
    assert questions(tmp_path / "out") == [
        Question("7", "who?", (), ("cats",), (), ("dogs",)),
        Question("8", "how?", (), ("dogs",)),
    ]
    (asked,) = questions(tmp_path / "out", "dev")
    assert (asked.question, asked.positives) == ("when?", ("cats",)) and asked.id[0] == "q"
