"""Questions of a user's own, in JSON lines or a table."""

import pytest

from data_pipeline.converters import convert
from data_pipeline.dataset import Question
from tests.data_pipeline.converters.files import fails, passages, questions, write, write_jsonl

HEADER = "question,answers,positives\n"


@pytest.fixture
def texts(tmp_path):
    write(tmp_path / "texts" / "a" / "cats.md", "# Cats\nCats purr.")
    return write(tmp_path / "texts" / "dogs.txt", "Dogs bark.").parent


def test_questions_join_a_folder_of_texts(tmp_path, texts):
    asked = write(
        tmp_path / "q.csv",
        f'\ufeff{HEADER}"Who, then?",cats|the cat,a/cats.md\nBoth?,,a/cats.md | dogs.txt\n',
    )
    converted = convert("text", [texts], tmp_path / "out", ["dev"], questions=asked)
    assert converted.questions == {"dev": 2}
    assert set(passages(tmp_path / "out")) == {"a/cats.md", "dogs.txt"}
    assert questions(tmp_path / "out", "dev") == [
        Question("0", "Who, then?", ("cats", "the cat"), ("a/cats.md",)),
        Question("1", "Both?", (), ("a/cats.md", "dogs.txt")),
    ]


def test_a_table_with_tabs_and_ids_beside_a_corpus(tmp_path):
    corpus = write_jsonl(tmp_path / "corpus.jsonl", {"id": "p", "text": "Cats purr."})
    asked = write(tmp_path / "q.tsv", "positives\tid\tquestion\tnote\np\t7\tWho?\tx\n")
    convert("jsonl", [corpus, asked], tmp_path / "out")
    assert questions(tmp_path / "out") == [Question("7", "Who?", (), ("p",))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("question,answers\nWho?,cats\n", "line 1: the header has no column positives"),
        (f"{HEADER}Who?,cats,horse.md\n", "line 2: there is no passage 'horse.md'"),
        (f"{HEADER}Who?,cats\n", "line 2: has 2 cells, and the header 3"),
    ],
)
def test_broken_tables_are_named(tmp_path, texts, text, said):
    path = write(tmp_path / "q.csv", text)
    fails(tmp_path, "text", [texts], f"{path}, {said}", questions=path)
