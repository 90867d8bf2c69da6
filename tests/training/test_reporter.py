"""What a run reports: the JSON-lines file, the progress line, alerts, and W&B that breaks."""

import json
import math

import pytest

from msa_train.config import load_config
from msa_train.training import reporter as reporting
from msa_train.training.reporter import JumpWatch
from msa_train.training.tracking.tracker import Tracker

NUMBERS = {"loss/lm": 1.5, "loss/router": 0.5, "lr": 1e-3, "step_ms": 10.0,
           "router/layer_1_recall@1": 0.25, "router/layer_2_recall@1": 0.75}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    return load_config(["--output", str(tmp_path), "--training.wandb.mode", "off"])


def test_numbers_go_to_the_file_and_the_line(config, capsys):
    reporter = reporting.Reporter(config, None, first_step=0, steps=100, rank=0)
    assert reporter.wandb_id is None
    reporter.log(10, NUMBERS)
    reporter.finish()
    written = json.loads((config.path / "metrics.jsonl").read_text())
    assert written == {"step": 10, **NUMBERS, "router/recall@1": 0.5}
    assert "recall@1 0.500" in capsys.readouterr().err


class Broken:
    """A W&B run that fails at whatever it is asked."""

    id = "x"

    def __getattr__(self, name):
        raise OSError(f"disk full at {name}")


def test_wandb_that_breaks_does_not_end_the_run(config, capsys):
    reporter = reporting.Reporter(config, None, first_step=0, steps=100, rank=0)
    reporter._tracker = Tracker(Broken(), config.training.wandb)
    for step in (10, 20, 30):
        reporter.log(step, NUMBERS)
        reporter.table("samples", step, ["a"], [["b"]])
        reporter.alert(f"stopped at {step}", "why")
        reporter.checkpoint(config.path, step)
    reporter.finish()
    said = capsys.readouterr().err
    assert said.count("disk full at log;") == 2, "once for numbers, once for tables"
    assert said.count("disk full at alert") == 1
    assert len((config.path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_loss_that_jumps_is_said_once(config, capsys):
    reporter = reporting.Reporter(config, None, first_step=0, steps=100, rank=0)
    for step in range(40):
        jump = {"loss/lm": 9.0} if step in (20, 21, 30) else {}
        reporter.log(step, NUMBERS | jump)
    reporter.finish()
    assert capsys.readouterr().err.count("loss/lm jumped: to 9 at step 20") == 1


def test_alerts_of_one_title_keep_their_distance(config, capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(reporting.time, "monotonic", lambda: now)
    reporter = reporting.Reporter(config, None, first_step=0, steps=100, rank=0)
    for now in (1.0, 2.0, reporting.ALERT_EVERY_S + 1.5):
        reporter.alert("late", f"at {now}")
    reporter.alert("other", "at once")
    said = capsys.readouterr().err
    assert said.count("late:") == 2 and said.count("other:") == 1


def test_other_ranks_are_silent(config, capsys):
    reporter = reporting.Reporter(config, None, first_step=0, steps=100, rank=1)
    reporter.log(10, NUMBERS)
    reporter.alert("stopped", "why")
    reporter.table("samples", 10, ["a"], [["b"]])
    reporter.checkpoint(config.path, 10)
    reporter.finish()
    assert reporter.wandb_id is None
    assert not (config.path / "metrics.jsonl").exists()
    assert capsys.readouterr().err == ""


def jumps_in(values, spreads=10.0, **how):
    watch = JumpWatch(spreads, **how)
    return [place for place, value in enumerate(values) if watch.jumps(value)]


FALLING = [5 * 0.97**step for step in range(100)]
NOISY = [2 + 0.1 * math.sin(7 * step) for step in range(200)]


@pytest.mark.parametrize("values", [FALLING, NOISY, [1.0] * 50, [0.0] * 50])
def test_ordinary_curves_have_none(values):
    assert jumps_in(values) == []


def test_a_jump_counts_once_while_it_lasts():
    values = [*NOISY[:60], 6.0, 7.0, 6.5, *NOISY[63:80], 6.0, *NOISY[81:]]
    assert jumps_in(values) == [60, 80]


def test_a_new_plateau_becomes_the_measure():
    values = NOISY[:60] + [v + 3 for v in NOISY[60:150]] + [20.0]
    assert jumps_in(values) == [60, 150]


def test_nothing_is_called_a_jump_before_enough_values():
    assert jumps_in([1.0] * 9 + [50.0]) == []
    assert jumps_in([1.0] * 10 + [50.0]) == [10]


def test_what_is_not_finite_is_a_jump_and_no_measure():
    assert jumps_in([math.nan, 1.0] + [1.0] * 20 + [math.inf, math.nan, 1.0, math.nan]) == [
        0,
        22,
        25,
    ]


def test_sensitivity_is_a_setting():
    values = [*NOISY[:60], 2.6]
    assert jumps_in(values, spreads=3) == [60]
    assert jumps_in(values, spreads=20) == []


@pytest.mark.parametrize("cut", [b'{"step": 2, "loss/\xc3', b"5\n", b"{}\n"])
def test_a_cut_file_of_metrics_does_not_stop_what_is_resumed(config, cut):
    path = config.path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 3}\n' + cut)
    reporting.Reporter(config, None, first_step=2, steps=4, rank=1).finish()
    reporting.Reporter(config, None, first_step=2, steps=4, rank=0).finish()
    assert path.read_bytes() == b'{"step": 1}\n'
