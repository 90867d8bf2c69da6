import json

from msa_train.evaluation.asking import Asker
from msa_train.evaluation.mining import mine
from tests.evaluation.conftest import VERBS


def test_mined_negatives_are_near_and_wrong(model, tokenizer, verbs, tmp_path):
    found = dict(mine(Asker(model, tokenizer, 4), verbs, tokenizer, tmp_path, count=3))
    assert sorted(found) == sorted(f"train-{w}" for w in VERBS)
    for id, negatives in found.items():
        word = id.removeprefix("train-")
        assert len(negatives) == 3 == len(set(negatives))
        assert not any(n.startswith(word) for n in negatives), "its twins hold the answer"


def test_the_command_writes_what_the_next_run_reads(
    model, tokenizer, verbs, tmp_path, monkeypatch, capsys
):
    from msa_train.cli import main
    from msa_train.interop import export

    monkeypatch.setattr(
        export, "load_export", lambda folder: export.LoadedModel(model, tokenizer, {})
    )
    settings = {"verbs": {"path": verbs.path, "document_tokens": 128}}
    command = ["data", "mine", str(tmp_path), "verbs", "--config", str(tmp_path / "run.yaml")]
    (tmp_path / "run.yaml").write_text(
        json.dumps({"output": str(tmp_path), "data": {"datasets": settings}})
    )
    out = tmp_path / "mined.jsonl"
    assert main([*command, "--out", str(out), "--count", "2"]) == 0
    assert "20 negatives" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 10 and all(len(row["negatives"]) == 2 for row in rows)
    assert main([*command, "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    command[3] = "nouns"
    assert main([*command, "--out", str(tmp_path / "x")]) == 2
    assert "there are verbs" in capsys.readouterr().err
