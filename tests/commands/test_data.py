"""`msa data build` and `msa data show`."""

import json

import pytest

from data_pipeline.locks import FileLock
from msa_train.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A config of a few small banks of needles, trained on for two stages."""
    folder = tmp_path_factory.mktemp("run")
    stage = {"lr": 1e-3, "data": {"document_tokens": 0, "weights": {"niah": 1}}}
    config = {
        "output": str(folder / "out"),
        "model": {"vocab_size": 1024},
        "data": {
            "banks": {"niah": {"documents": 8, "contexts": 4}},
            "tokenizer": {"vocab_size": 1024, "needle_texts": 300, "word_repeats": 5},
            "niah": {"adjectives": 16, "nouns": 32, "values": 32},
            "workers": 1,
        },
        "stages": [{"name": "a", "steps": 2, **stage}, {"name": "b", "steps": 2, **stage}],
        "training": {"batch_samples": 2, "held_out_every": 2, "held_out_samples": 2},
    }
    (folder / "run.yaml").write_text(json.dumps(config))
    return folder


def test_build_makes_the_shards_once_and_says_what_is_in_them(run, capsys):
    command = ["data", "build", "--config", str(run / "run.yaml")]
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert printed[1].startswith("stage 1: 2 steps, 4 banks, 32 documents (")
    out = run / "out"
    for folder in ("shards", "held_out"):
        assert (out / folder / "manifest.json").is_file()
    assert (out / "shards" / "tokenizer").is_dir()
    before = (out / "shards" / "manifest.json").stat().st_mtime_ns

    assert main([*command, "--json"]) == 0
    captured = capsys.readouterr()
    manifest = json.loads(captured.out)
    assert manifest["samples"] == 8 and [s["samples"] for s in manifest["stages"]] == [4, 4]
    assert captured.err.count("is there already") == 2
    assert (out / "shards" / "manifest.json").stat().st_mtime_ns == before

    assert main([*command, "--data.seed", "5"]) == 2
    assert "was built from other settings" in capsys.readouterr().err


def test_parts_are_built_and_put_together(run, capsys):
    """One process at a time here; tests/data_pipeline/shards/test_parts.py has the rest."""
    command = ["data", "build", "--config", str(run / "run.yaml"), "--output", str(run / "parted")]
    main(["data", "build", "--config", str(run / "run.yaml")])
    assert main([*command, "--part", "0/2"]) == 3
    assert main([*command, "--part", "2/2"]) == 0
    assert main([*command, "--seal"]) == 3
    said = capsys.readouterr()
    assert "--part is 0/2: give K/N" in said.err and "part 1/2 (1 shards, never begun)" in said.err
    assert "part 2/2: 0 shards; when all parts are there" in said.out
    assert main([*command, "--part", "1/2"]) == main([*command, "--seal"]) == 0
    assert main([*command, "--part", "1/2"]) == 0
    assert "is there already" in capsys.readouterr().err
    for name in ("shards/shard-000000.tar", "shards/index.npy", "held_out/shard-000000.tar"):
        assert (run / "parted" / name).read_bytes() == (run / "out" / name).read_bytes()
    assert main([*command, "--part", "1/2", "--data.seed", "5"]) == 2


def test_show_prints_a_sample_as_the_model_sees_it(run, capsys):
    command = ["data", "show", "--config", str(run / "run.yaml")]
    main(["data", "build", "--config", str(run / "run.yaml")])
    capsys.readouterr()
    assert main([*command, "--sample", "3", "--contexts", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("source niah: 8 documents, the first of them:\n")
    assert shown.count("\n--- ") == 2 and "positives [" in shown
    assert "«" in shown and shown.endswith("(what the model is asked to write stands in «»)\n")
    assert main([*command, "--sample", "8"]) == 2
    assert "--sample 8: give 0 to 7" in capsys.readouterr().err


def test_a_run_that_is_made_longer_has_its_shards_built_again(run, capsys):
    """By their own tokenizer; what a run reads that is at work stays."""
    command = ["data", "build", "--config", str(run / "run.yaml")]
    assert main(command) == 0
    out = run / "out"
    before = {path: path.read_bytes() for path in sorted((out / "shards").rglob("*.model"))}
    config = json.loads((run / "run.yaml").read_text())
    config["stages"][1]["steps"] = 3
    config["stages"].append(config["stages"][0] | {"name": "c", "data": {"document_tokens": 20}})
    (run / "longer.yaml").write_text(json.dumps(config))
    longer = ["data", "build", "--config", str(run / "longer.yaml")]
    with FileLock(out / "run.lock", "train"):
        assert main(longer) == 8
    assert "is being trained in by process" in capsys.readouterr().err
    assert main(longer) == 0
    printed = capsys.readouterr()
    assert printed.err.count("is built again, longer, by its own tokenizer") == 2
    assert [line.split(":")[1].split(",")[0] for line in printed.out.splitlines()] == [
        " 2 steps", " 3 steps", " 2 steps",
    ]  # fmt: skip
    assert before and all(path.read_bytes() == there for path, there in before.items())
    assert not list(out.glob(".shards*")) and not list(out.glob(".held_out*"))
    assert main(command) == 2, "and never shorter"
    assert "was built from other settings" in capsys.readouterr().err
