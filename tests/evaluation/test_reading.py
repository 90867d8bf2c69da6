"""Reading over what searches bring, by a writer that answers exactly when the answer is there."""

import json

import numpy as np
import pytest

from data_pipeline.bm25 import BM25
from data_pipeline.dataset import Passage, Question, write_dataset
from data_pipeline.errors import DataError
from data_pipeline.protocol import ASK, NOT_FOUND, RETRIEVE, answer_pieces
from msa_train.cli import main
from msa_train.evaluation.reading import evaluate_reading
from msa_train.evaluation.settings import ReadingTest
from msa_train.memory.engine import scheduler
from msa_train.router.examples import read_examples
from msa_train.router.exports import start_router
from msa_train.router.settings import StartSettings
from tests.memory.tiny import tiny_export, tiny_tokenizer

NAMES = ("harbour", "lighthouse", "crane", "keeper", "boat", "sail", "rope", "gull")
CODES = {name: str(4000 + 37 * n) for n, name in enumerate(NAMES)}
OTHERS = ("lighthouse", "tide", "keeper", "tide", "sail", "tide", "gull", "tide")
ROWS = "oracle,router_1,router_3,bm25_1,hybrid_2,absent_2,none"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reading")
    # Every second passage names another oftener than itself: word search is wrong about those.
    passages = [
        Passage(name, "", f"The code of the {name} is {code}. Of it: {f'{other} ' * 5}.")
        for (name, code), other in zip(CODES.items(), OTHERS, strict=True)
    ]
    questions = [
        ("dev", Question(name, f"What is the code of the {name}?", (f"nr {code}", code), (name,)))
        for name, code in CODES.items()
    ]
    questions.append(("bare", Question("x", "Which code?", (), ("boat",))))
    write_dataset(folder / "set", passages, questions)
    export = tiny_export(folder / "export")
    start_router(export, [str(folder / "set")], folder / "own", StartSettings(layers="0,2"))
    return folder / "own", str(folder / "set")


@pytest.fixture
def honest(monkeypatch):
    """The model writes the code of what is asked where it stands in its context."""

    class Reader(scheduler.Sequence):
        def prefilled(self, chosen):
            text = "".join(piece.text for piece in self._interleave.context)
            question, _, read = text.partition(ASK)[2].partition(RETRIEVE)
            code = CODES[question.removesuffix("?").split()[-1]]
            pieces = answer_pieces(code if code in read else NOT_FOUND)
            self.script = self._tokenizer.encode_pieces(pieces).tokens
            return super().prefilled(chosen)

        def append(self, _token, room):
            return super().append(self.script.pop(0), room)

    monkeypatch.setattr(scheduler, "Sequence", Reader)


def test_each_row_is_asked_over_its_own_passages(given, honest):
    export, data = given
    test = ReadingTest(ROWS, answer_tokens=64, batch=3, workers=1)
    report = evaluate_reading(export, [data], "dev", test)
    rows = report["reading"][data]
    assert list(rows) == ROWS.split(",")
    examples = read_examples(data, tiny_tokenizer(), "dev")
    asked = [pair.question for pair in examples.pairs]
    best = BM25.of([d.text for d in examples.documents]).rank(np.arange(8), asked, 1)[:, 0]
    right = np.mean(best == [pair.documents[0] for pair in examples.pairs])
    assert 0 < right < 1
    assert rows["bm25_1"]["em"] == rows["bm25_1"]["right_shown"] == pytest.approx(right, abs=1e-3)
    for name, row in rows.items():
        assert row["em"] == row["f1"] == row["right_shown"] == row["answered"], name
        absent = row["said_absent"]
        assert absent["shown"] in (None, 0) and absent["not_shown"] in (None, 1), name
        low, high = row["intervals"]["f1"]
        assert low <= row["f1"] <= high
    assert (rows["oracle"]["em"], rows["none"]["em"], rows["absent_2"]["em"]) == (1, 0, 0)
    assert rows["oracle"]["em_answered"] == 1 and rows["none"]["em_answered"] is None
    assert rows["router_3"]["em"] >= rows["router_1"]["em"]


def test_answers_are_those_of_the_model_in_any_number_of_processes(given, capsys):
    export, data = given
    found = []
    for workers in ("1", "2"):
        command = ["router", "answers", str(export), "--data", data, "--split", "dev", "--json"]
        few = ["--rows", "oracle,bm25_3", "--questions", "5", "--answer-tokens", "4"]
        assert main([*command, *few, "--batch", "2", "--workers", workers]) == 0
        found.append(json.loads(capsys.readouterr().out))
        assert found[-1].pop("seconds") > 0
    assert found[0] == found[1]
    assert found[0]["corpora"][data] == {"documents": 8, "questions": 5}
    assert found[0]["prompts"] == 10
    table = ["--rows", "none", "--questions", "2", "--answer-tokens", "2", "--workers", "1"]
    assert main([*command[:-1], *table]) == 0
    assert "none" in capsys.readouterr().out


def test_a_model_that_reads_pooled_states_has_them(given, honest, tmp_path):
    export, data = given
    start_router(export, [data], tmp_path / "r", StartSettings(layers="0,2", reads="2"))
    test = ReadingTest("oracle,none", questions=3, answer_tokens=64, workers=1)
    rows = evaluate_reading(tmp_path / "r", [data], "dev", test)["reading"][data]
    assert (rows["oracle"]["em"], rows["none"]["em"]) == (1, 0)


def test_questions_without_answers_are_refused(given):
    export, data = given
    with pytest.raises(DataError, match="has an answer"):
        evaluate_reading(export, [data], "bare", ReadingTest("none"))
