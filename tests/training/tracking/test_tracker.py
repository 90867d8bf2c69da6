"""W&B offline, read back from its files: settings, numbers, tables, alerts, artifacts, resume."""

import json
import time

import pytest

from msa_train.config import load_config
from msa_train.training.reporter import Reporter
from msa_train.training.tracking import start, tracker
from tests.training.tracking.runs import load, save_checkpoint, save_export, save_shards
from tests.training.tracking.wandb_files import segments

LAYER = "router/layer_2_recall@1"
NUMBERS = {"loss/lm": 1.5, "loss/router": 0.5, "lr": 1e-3, "step_ms": 10.0, LAYER: 0.25}


def test_a_run_is_described_and_its_numbers_have_steps(tmp_path):
    config = load(tmp_path, "--training.wandb.tags", "[a, b]", "--training.wandb.notes", "why",
                  "--training.wandb.group", "sizes")  # fmt: skip
    reporter = Reporter(config, None, first_step=0, steps=100, rank=0)
    reporter.log(10, NUMBERS)
    reporter.log(20, NUMBERS | {"loss/lm": 1.0, LAYER: 0.75})
    reporter.log(30, NUMBERS | {"loss/lm": 2.0})
    reporter.finish()
    (found,) = segments(config.path)
    run = found.run
    assert (run.display_name, run.run_group, run.job_type) == ("needles", "sizes", "train")
    assert (list(run.tags), run.notes, run.project) == (["a", "b"], "why", "msa-train")
    assert found.config["model"]["router"]["layers"] == "2"
    assert found.config["code"]["package"] and len(found.config["code"]["commit"]) == 40
    assert [found.history[step]["loss/lm"] for step in (10, 20, 30)] == [1.5, 1.0, 2.0]
    assert [found.history[step][LAYER] for step in (10, 20, 30)] == [0.25, 0.75, 0.25]
    assert found.history[20]["router/recall@1"] == 0.75
    assert found.summary["loss/lm"] == {"min": 1.0, "last": 2.0}
    assert found.summary[LAYER] == {"max": 0.75, "last": 0.25}
    assert found.summary["lr"] == 1e-3
    assert found.exit_code == 0


def test_without_a_group_a_run_is_its_own(tmp_path):
    config = load(tmp_path)
    reporter = Reporter(config, None, first_step=0, steps=100, rank=0)
    reporter.finish(exit_code=10)
    (found,) = segments(config.path)
    assert found.run.run_group == "needles"
    assert found.exit_code == 10


def test_a_table_and_an_alert(tmp_path):
    config = load(tmp_path)
    reporter = Reporter(config, None, first_step=0, steps=100, rank=0)
    reporter.log(10, NUMBERS)
    reporter.table("samples", 10, ["question", "score", "hit"], [["who?", 0.5, True]])
    reporter.alert("stopped", "SIGTERM at step 10")
    reporter.finish(exit_code=143)
    (found,) = segments(config.path)
    table = found.table("samples", 10)
    assert table["columns"] == ["question", "score", "hit"]
    assert table["data"] == [["who?", 0.5, True]]
    assert found.history[10]["loss/lm"] == 1.5
    assert [(a.title, a.text, a.level) for a in found.alerts] == [
        ("stopped", "SIGTERM at step 10", "WARN")
    ]
    assert "preempting" in found.records


@pytest.mark.parametrize("how", ["references", "files"])
def test_artifacts_lead_from_shards_to_the_export(tmp_path, how):
    config = load(tmp_path, "--training.wandb.artifacts", how)
    save_shards(config.path)
    reporter = Reporter(config, None, first_step=0, steps=100, rank=0)
    folder = save_checkpoint(config.path, 500, reporter.wandb_id, config)
    reporter.checkpoint(folder, 500, aliases=["final"])
    reporter.finish()
    start.log_export(folder, save_export(config.path))

    trained, exported = segments(config.path)
    shards = trained.artifacts["shards-needles"]
    assert shards.use_after_commit and shards.type == "dataset"
    assert json.loads(shards.metadata)["samples"] == 7
    logged = trained.artifacts[f"checkpoint-{reporter.wandb_id}"]
    assert not logged.use_after_commit
    assert set(logged.aliases) == {"step-500", "final", "latest"}
    for entry in logged.manifest.contents:
        assert bool(entry.ref) == (how == "references")
        assert bool(entry.local_path) == (how == "files")
    assert {e.path for e in logged.manifest.contents} == {
        "config.yaml", "state.json", "weights-tp0.safetensors"
    }  # fmt: skip

    assert (exported.run.job_type, exported.run.run_group) == ("export", "needles")
    assert exported.run.display_name == "needles-export"
    used = exported.artifacts[logged.name]
    assert used.use_after_commit and used.digest == logged.digest, "one and the same version"
    assert "step-500" in used.aliases
    made = exported.artifacts[f"export-{reporter.wandb_id}"]
    assert (made.type, json.loads(made.metadata)) == ("model", {"weights": "1234"})


def test_artifacts_can_be_left_out(tmp_path):
    config = load(tmp_path, "--training.wandb.artifacts", "none")
    save_shards(config.path)
    reporter = Reporter(config, None, first_step=0, steps=100, rank=0)
    folder = save_checkpoint(config.path, 500, reporter.wandb_id, config)
    reporter.checkpoint(folder, 500)
    reporter.finish()
    start.log_export(folder, save_export(config.path))
    (only,) = segments(config.path)
    assert only.artifacts == {}


def test_a_checkpoint_that_is_gone_stops_nothing(tmp_path, capsys):
    config = load(tmp_path)
    reporter = Reporter(config, None, first_step=0, steps=100, rank=0)
    reporter.checkpoint(config.path / "checkpoints" / "step-000000100", 100)
    folder = save_checkpoint(config.path, 500, reporter.wandb_id, config)
    reporter.checkpoint(folder, 500)
    reporter.finish()
    (found,) = segments(config.path)
    assert list(found.artifacts) == [f"checkpoint-{reporter.wandb_id}"]
    assert "is gone" in capsys.readouterr().err


def test_a_resumed_run_goes_on_under_its_id(tmp_path):
    config = load(tmp_path)
    first = Reporter(config, None, first_step=0, steps=100, rank=0)
    first.log(10, NUMBERS)
    first.log(20, NUMBERS)  # after the last checkpoint, at step 10
    first.finish(exit_code=143)
    time.sleep(1.1)  # run directories are named by the second
    second = Reporter(config, first.wandb_id, first_step=10, steps=100, rank=0)
    second.log(20, NUMBERS)
    second.log(30, NUMBERS)
    second.finish()
    before, after = segments(config.path)
    assert before.run.run_id == after.run.run_id == second.wandb_id
    assert (list(before.history), list(after.history)) == ([10, 20], [20, 30])


class Stuck:
    """A run whose server does not answer."""

    id = "x"

    def __init__(self):
        self.asked = 0

    def log(self, *_, **__):
        self.asked += 1
        time.sleep(600)


def test_a_server_that_does_not_answer_never_holds_training_up(capsys):
    config = load_config(["--training.wandb.finish_timeout_s", "1"])
    stuck = Stuck()
    voice = tracker.Tracker(stuck, config.training.wandb)
    began = time.monotonic()
    for step in range(2000):
        voice.log(step, NUMBERS)
    voice.finish()
    assert time.monotonic() - began < 60
    said = capsys.readouterr().err
    assert stuck.asked == 1
    assert said.count("does not keep up") == 1
    assert said.count("did not finish") == 1
