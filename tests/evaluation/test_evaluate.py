"""The whole evaluation on a tiny model: what the report holds."""

import io
import json
from dataclasses import replace
from shutil import copyfile

import pytest
from rich.console import Console

from data_pipeline.dataset import find_file
from data_pipeline.schema import Document, Query
from data_pipeline.sources.base import BankConfig, DrawnBank, HeldOutBank
from data_pipeline.sources.pydocs import PydocsSource
from msa_train.evaluation.evaluate import evaluate
from msa_train.evaluation.report import tables


@pytest.fixture
def pydocs():
    words = ["parse", "join", "split", "encode", "decode", "open", "close", "read", "write", "seek"]
    documents = tuple(Document(i, f"lib.{word}()\nHow to {word}.") for i, word in enumerate(words))
    queries = [Query(f"How do I {w}?", (f"lib.{w}",), (i,)) for i, w in enumerate(words)]
    return DrawnBank(documents, tuple(queries))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_report(workers, model, tokenizer, config, pydocs, monkeypatch, tmp_path):
    held_out = HeldOutBank(pydocs, picture="pydocs.png")
    monkeypatch.setattr(PydocsSource, "held_out_bank", lambda *_: held_out)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss/lm": 2.0}\n')
    report = evaluate(
        model,
        tokenizer,
        replace(
            config,
            output=str(tmp_path),
            evaluation=replace(config.evaluation, workers=workers),
        ),
        tmp_path,
    )
    assert json.loads((tmp_path / "report.json").read_text()) == report
    for task in ("single", "multi_value"):
        assert list(report["niah"][task]) == ["2048", "8192"]
        for length, section in report["niah"][task].items():
            assert {"recall@16", "answer_memory", "answer_text", "bm25_recall@16"} <= set(section)
            assert section["memory_tokens"] >= int(length)
            assert section["n"]["recall@16"] == 4 and section["n"]["answer_text"] == 3
            assert "recall@1" in section["layers"]["1"]
        assert report["niah"][task]["2048"]["bm25_recall@16"] == 1
        assert set(report["niah_controls"][task]) == {"no_memory", "random_router"}
    assert {f"{p}recall@{k}" for p in ("", "bm25_") for k in (1, 5, 16)} <= set(report["pydocs"])
    assert report["pydocs"]["bm25_recall@1"] == 1
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"memory.png", "pydocs.png", "training.png"}


def test_a_table_comes_without_held_out_questions_and_whatever_the_pictures_do(
    model, tokenizer, config, verbs, tmp_path, capsys
):
    """One dataset holds nothing out, one has no question at all; the metrics are cut."""
    (tmp_path / "mute").mkdir()
    copyfile(find_file(verbs.path, "corpus"), tmp_path / "mute" / "corpus.jsonl")
    mute = replace(verbs, path=str(tmp_path / "mute"), tasks={"title": 1}, held_out_split=None)
    datasets = {"verbs": replace(verbs, held_out_split=None), "mute": mute}
    unused = {name: BankConfig(weight=0.0) for name in ("niah", "pydocs")}
    data = replace(config.data, datasets=datasets, banks=replace(config.data.banks, **unused))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lo')
    alone = replace(config, output=str(tmp_path), data=data)
    seen = []
    report = evaluate(model, tokenizer, alone, tmp_path, seen.append)
    assert seen == [report] and json.loads((tmp_path / "report.json").read_text()) == report
    assert report["datasets"]["verbs"]["questions"] == 10 and report["not_asked"] == ["mute"]
    assert "no picture" in capsys.readouterr().err
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(tables(report))
    text = " ".join(console.export_text().split())
    assert "verbs: 10 questions THAT TRAINING ASKS TOO, bank of all 30" in text
    assert "mute: nothing to ask; give data.datasets.mute.held_out_split" in text
