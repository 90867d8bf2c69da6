"""`msa data reading`: its report in words and JSON, its dataset, and exit codes."""

import json

import pytest

from data_pipeline.settings import (
    ContextConfig,
    CorpusStage,
    DataConfig,
    StageData,
    TrainingCorpus,
)
from data_pipeline.shards.sampling import SampleBuilder
from data_pipeline.sources.base import BankConfig
from data_pipeline.sources.dataset_config import DatasetConfig
from msa_train.cli import main
from tests.memory.tiny import TEXTS, tiny_export, tiny_tokenizer


@pytest.fixture
def command(tmp_path):
    """Of a started router and a file of documents."""
    corpus = tmp_path / "c.jsonl"
    rows = [{"id": str(n), "title": f"t{n}", "text": f"{text} In {1900 + n} it had {n} doors."}
            for n, text in enumerate(TEXTS * 4)]  # fmt: skip
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    export, begun = str(tiny_export(tmp_path / "e")), str(tmp_path / "begun")
    assert main(["router", "start", export, str(corpus), "--out", begun]) == 0
    return ["data", "reading", begun, str(corpus), "--out", str(tmp_path / "out")]


def test_a_run_reads_what_it_writes(command, tmp_path, capsys):
    assert main([*command, "--questions", "20", "--held-out-share", "0.2"]) == 0
    said = capsys.readouterr().out
    assert "questions to train on" in said and "finds a right passage first for" in said
    dataset = DatasetConfig(command[-1], held_out_split="held_out", bank=BankConfig(1, 12, 3))
    data = DataConfig(datasets={"made": dataset}, contexts=ContextConfig(0, 1, 0, absent_share=0.3))
    stage = CorpusStage(StageData(weights={"made": 1}), samples=4)
    corpus = TrainingCorpus(data, (stage,))
    builder = SampleBuilder(corpus, tiny_tokenizer(), tmp_path / "prepared")
    answers = [
        "".join(piece.text for piece in context.response if piece.label)
        for place in range(4)
        for context in builder.build(place).contexts
    ]
    assert len(answers) >= 8
    assert any("The memory does not say." in answer for answer in answers)


def test_as_json(command, capsys):
    capsys.readouterr()
    assert main([*command, "--json", "--passages", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["split"] == "clozes" and report["settings"]["passages"] == 2
    assert 0 <= report["router_first"] <= 1


@pytest.mark.parametrize(
    ("place", "value", "more", "code", "said"),
    [
        (2, "nothing", [], 4, "no complete export"),
        (3, "nothing.jsonl", [], 3, "no such file"),
        (3, None, ["--split", "train"], 3, "no questions"),
        (3, None, ["--questions", "0"], 2, "questions is 0"),
        (3, None, ["--held-out-share", "1"], 2, "held_out_share is 1"),
    ],
)
def test_wrong_input_has_its_code_and_leaves_nothing(
    command, tmp_path, capsys, place, value, more, code, said
):
    command[place] = value or command[place]
    assert main([*command, *more]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
