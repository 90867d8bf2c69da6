"""How ranks are started: the launcher's command and environment, and what its end means."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import pytest
import torch

from msa_train.errors import ConfigError, RankError
from msa_train.training import last_words
from msa_train.training import launch as launching
from msa_train.training.launchers import STARTED_BY
from tests.distributed.runs import settings


class Launcher:
    """DeepSpeed's launcher, which ends at once with `code`."""

    code, started = 0, None
    pid = 1 << 30  # the session of nobody

    def __init__(self, command, env, start_new_session):
        type(self).started = command, env

    def wait(self, timeout):
        return self.code


@pytest.fixture
def start(monkeypatch, shards, tmp_path):
    monkeypatch.setattr(launching.subprocess, "Popen", Launcher)
    monkeypatch.setattr(launching.signal, "signal", lambda *_: None)
    arguments = settings(tmp_path / "run", training__shards=shards)
    return lambda ranks=2, resume=False, device="auto", **hosts: launching.launch(
        [*arguments, "--training.device", device], ranks, resume, **hosts
    )


def test_no_rank_at_all_is_refused(start):
    with pytest.raises(ConfigError, match="--ranks is 0: give 1 or more"):
        start(0)


def test_what_deepspeed_would_refuse_starts_nothing(monkeypatch, shards, tmp_path):
    monkeypatch.setattr(launching.subprocess, "Popen", None)
    for name, value in launching.CPU_ENVIRONMENT.items():  # and afterwards as it was
        monkeypatch.setenv(name, value)
    given = "{zero_optimization: {offload_optimiser: {device: cpu}}}"
    arguments = settings(tmp_path / "run", training__shards=shards, training__deepspeed=given)
    with pytest.raises(ConfigError, match=r"training\.deepspeed\..*\.offload_optimiser: DeepSpeed"):
        launching.launch(arguments, 2, False)


def test_the_launcher_starts_the_trainer_on_every_rank(start, monkeypatch):
    monkeypatch.setattr(Launcher, "code", 10)
    assert start(2, resume=True) == 10
    command, environment = Launcher.started
    assert command[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    assert command[command.index("--num_gpus") + 1] == "2"
    assert command[command.index("--hostfile") + 1] == ""  # or it would read /job/hostfile
    assert command[command.index("--module") + 1] == launching.MODULE
    assert command[-1] == "--resume"
    assert command[command.index("--log_level") + 1] == "critical"
    assert environment[STARTED_BY] == str(os.getpid())
    assert environment["PATH"].startswith(os.path.dirname(sys.executable))
    if not torch.cuda.is_available():
        assert environment["DS_ACCELERATOR"] == "cpu"


def test_more_ranks_than_gpus_are_refused_unless_the_cpu_is_meant(start, monkeypatch, tmp_path):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"--ranks asks for 2 ranks .*training\.device cpu"):
        start(2)
    monkeypatch.setattr(Launcher, "code", 10)
    assert start(2, device="cpu") == 10
    _, environment = Launcher.started
    assert environment["DS_ACCELERATOR"] == "cpu" and environment["CUDA_VISIBLE_DEVICES"] == ""
    with pytest.raises(ConfigError, match="--include localhost:0 names GPUs"):
        start(None, device="cpu", include="localhost:0")
    assert start(1) == 10 and "DS_ACCELERATOR" not in Launcher.started[1]


def test_slots_that_are_named_are_ranks_of_the_launcher(start, tmp_path, monkeypatch):
    (hostfile := tmp_path / "hosts").write_text("one slots=2\ntwo slots=4\n")
    monkeypatch.setattr(Launcher, "code", 10)
    assert start(None, hostfile=hostfile, include="two:0,3") == 10
    command, _ = Launcher.started
    assert command[3:7] == ["--hostfile", str(hostfile), "--include", "two:0,3"]
    assert "--num_gpus" not in command
    # One machine, which is another: DeepSpeed's launcher would start its ranks here.
    assert command[7] == "--force_multi"
    hostfile.write_text("localhost slots=2\n")
    assert start(None, hostfile=hostfile) == 10 and "--force_multi" not in Launcher.started[0]
    hostfile.write_text("one slots=2\ntwo slots=4\n")
    with pytest.raises(ConfigError, match="batch_samples is 2, which 4 data-parallel"):
        start(None, hostfile=hostfile, include="two")
    with pytest.raises(ConfigError, match="--ranks is 2, but --hostfile and --include"):
        start(2, include="localhost:0")


@pytest.mark.parametrize("full", [False, True])
def test_ranks_of_other_machines_are_asked_through_the_output(start, tmp_path, monkeypatch, full):
    """Where that cannot be written, their launcher is stopped."""
    ranks, handlers, stopped = tmp_path / "run" / "ranks", {}, []

    def wait(launcher, timeout):
        ranks.mkdir(parents=True)
        record = asdict(last_words.RankRecord(0, "one", 7, began=1.0))
        (ranks / "rank-00000.json").write_text(json.dumps(record))
        handlers[signal.SIGINT](signal.SIGINT, None)
        return 1

    def refuse(output):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Launcher, "wait", wait)
    monkeypatch.setattr(launching.signal, "signal", handlers.setdefault)
    monkeypatch.setattr(launching, "_stop", stopped.append)
    if full:
        monkeypatch.setattr(last_words, "ask_to_stop", refuse)
    (hostfile := tmp_path / "hosts").write_text("one slots=1\ntwo slots=1\n")
    assert start(None, hostfile=hostfile) == 130
    assert last_words.asked_to_stop(tmp_path / "run") != full
    assert stopped == [Launcher.pid] * full


def test_an_end_before_the_last_step_is_an_error(start, monkeypatch):
    monkeypatch.setattr(Launcher, "code", 0)
    with pytest.raises(RankError, match=r"step 0 of 4 without an error.*--resume"):
        start()
    assert "--resume" not in Launcher.started[0]
    monkeypatch.setattr(launching.checkpoint_folders, "last_step", lambda folder: 4)
    assert start() == 0


def test_settings_are_checked_before_anything_is_started(monkeypatch):
    monkeypatch.setattr(launching.subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    with pytest.raises(ConfigError, match="zero_stage"):
        launching.launch(["--training.zero_stage", "7"], 1, False)


@pytest.mark.parametrize(
    ("ranks", "parallel", "documents", "said"),
    [
        (3, 1, 1, "training.batch_samples is 2, which 3 data-parallel ranks cannot share"),
        (3, 2, 1, r"3 ranks, which training.tensor_parallel \(2\) does not divide"),
        (6, 1, 2, "training.batch_samples is 2, which 3 groups of 2 ranks each cannot share"),
        (6, 2, 2, r"\(2\) times training.document_parallel \(2\) does not .* multiple of 4"),
    ],
)
def test_ranks_that_cannot_share_a_step_are_refused_before_they_start(
    start, shards, tmp_path, monkeypatch, ranks, parallel, documents, said
):
    monkeypatch.setattr(launching.subprocess, "Popen", None)
    arguments = settings(
        tmp_path / "run",
        training__shards=shards,
        training__batch_samples=2,
        training__tensor_parallel=parallel,
        training__document_parallel=documents,
    )
    with pytest.raises(ConfigError, match=said):
        launching.launch(arguments, ranks, False)


def test_a_launcher_that_was_killed_is_an_error(start, monkeypatch):
    monkeypatch.setattr(Launcher, "code", -9)
    with pytest.raises(RankError, match="killed from outside"):
        start()


RANK = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def end(*_):
    (folder / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, end if "deaf" not in sys.argv else signal.SIG_IGN)
(folder / "ready").touch()
time.sleep(60)
"""
LAUNCHER = """
import subprocess, sys
sys.exit(subprocess.call([sys.executable, "-c", *sys.argv[1:], "--local_rank=0"]))
"""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a launcher with one rank; `then` gets its session and the handlers of signals when the
    rank is ready."""

    def _run(then, *how, patience_s=30.0):
        handlers, sessions = {}, []
        real = subprocess.Popen

        def popen(*args, **kinds):
            process = real(*args, **kinds)
            sessions.append(process.pid)
            return process

        def act():
            while not (tmp_path / "ready").exists():
                time.sleep(0.02)
            then(sessions[0], handlers)

        monkeypatch.setattr(launching.subprocess, "Popen", popen)
        monkeypatch.setattr(launching.signal, "signal", handlers.setdefault)
        acting = threading.Thread(target=act, daemon=True)
        acting.start()
        command = [sys.executable, "-c", LAUNCHER, RANK, str(tmp_path), *how]
        found = launching._run(command, dict(os.environ), patience_s)
        acting.join()
        assert not launching._members(sessions[0]), "nobody is left"
        return found, (tmp_path / "saved").exists()

    return _run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_to_the_ranks_which_save(run, number):
    assert run(lambda _, handlers: handlers[number](number, None)) == ((143, number), True)


def test_a_second_ctrl_c_does_not_wait(run):
    def twice(_, handlers):
        handlers[signal.SIGINT](signal.SIGINT, None)
        handlers[signal.SIGINT](signal.SIGINT, None)

    assert run(twice, "deaf") == ((-9, signal.SIGINT), False)


def test_ranks_whose_launcher_was_killed_are_waited_for_and_then_ended(run):
    def kill(session, _):
        os.kill(session, signal.SIGKILL)

    assert run(kill, "deaf", patience_s=0.5) == ((-9, 0), False)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_was_stopped_says_so_once(start, monkeypatch, tmp_path, capsys, number, code):
    monkeypatch.setattr(launching, "_run", lambda *_: (143, number))
    assert start() == code
    assert capsys.readouterr().err.count("training stopped: no step was saved") == 1

    def save_and_end(*_):
        (tmp_path / "run" / "checkpoints" / "step-000000001").mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / "step-000000001" / "seal.json").write_text("{")
        return 143, number

    monkeypatch.setattr(launching, "_run", save_and_end)
    assert start() == code
    assert "training stopped" not in capsys.readouterr().err, "the rank has said it"


def test_what_cannot_be_killed_is_named_and_left(monkeypatch, capsys):
    class Stuck:
        pid = 4711

        def kill(self):
            pass

    monkeypatch.setattr(launching, "_members", lambda _: [Stuck()])
    monkeypatch.setattr(launching, "_KILLED_S", 0.2)
    launching._wait_for_end(1, 0.1)
    assert "cannot be killed are left behind: 4711" in "".join(capsys.readouterr())
