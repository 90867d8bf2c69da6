"""How a run starts: its code and mode; and online, against a stand-in server: what is sent, resume,
sync, and a server that fails.

The real server is not here: docs/tracking.md lists what that leaves untested.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from msa_train import __version__
from msa_train.config import load_config
from msa_train.training.tracking.start import _mode, code_version, git_root, log_export
from tests.training.tracking.runs import load, save_checkpoint, save_export
from tests.training.tracking.wandb_files import segments
from tests.training.tracking.wandb_server import stand_in

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 60
RUN = """
import sys
from msa_train.config import load_config
from msa_train.training.reporter import Reporter
output, mode, run_id, first, *steps = sys.argv[1:]
config = load_config(["--output", output, "--training.wandb.mode", mode,
    "--training.wandb.init_timeout_s", "5", "--training.wandb.finish_timeout_s", "4",
    "--training.wandb.group", "sizes", "--training.wandb.tags", "[a]"])
reporter = Reporter(config, run_id or None, first_step=int(first), steps=100, rank=0)
print(reporter.wandb_id, flush=True)
for step in map(int, steps):
    reporter.log(step, {"loss/lm": step / 10, "loss/router": 1.0, "lr": 1e-3, "step_ms": 1.0})
sys.stdin.read()  # until the test lets it end
reporter.finish()
"""


@pytest.fixture
def server():
    with stand_in() as known:
        yield known


@pytest.fixture
def environment(tmp_path):
    ours = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    home = {f"WANDB_{name}_DIR": str(tmp_path / "home") for name in ("DATA", "CACHE", "CONFIG")}
    return ours | home | {"WANDB_API_KEY": "k" * 40}


def start(environment, url, output, mode, run_id, first, *steps):
    """A process that waits before its end. All it starts can be stopped with it (`stop`)."""
    Path(output).mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(output), mode, run_id, *map(str, (first, *steps))],
        env=environment | {"WANDB_BASE_URL": url},
        cwd=ROOT,
        text=True,
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def stop(process):
    """W&B's own processes hold the pipes: reading them would wait for those too."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(LIMIT_S)


def end(process):
    """(run id, standard error) of a run that is let go on to its end."""
    try:
        out, err = process.communicate("", timeout=LIMIT_S)
    finally:
        stop(process)
    assert process.returncode == 0, err
    return out.split()[0], err


def sync(environment, url, folder):
    with (folder.parent / "sync.log").open("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "wandb", "sync", str(folder), "--yes"],
            env=environment | {"WANDB_BASE_URL": url},
            cwd=folder.parent,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        try:
            assert process.wait(LIMIT_S) == 0
        finally:
            stop(process)
        said.seek(0)
        return said.read()


def test_an_online_run_sends_its_numbers_and_resumes_in_the_same_chart(
    server, environment, tmp_path
):
    where = environment, server.url, tmp_path / "out", "online"
    run_id, said = end(start(*where, "", 0, 10, 20))
    assert "W&B" not in said
    sent = server.runs[run_id]
    assert (sent["groupName"], sent["jobType"], sent["displayName"]) == ("sizes", "train", "out")
    assert list(sent["tags"]) == ["a"]
    assert server.history(run_id) == [(10, 1.0), (20, 2.0)]

    resumed, said = end(start(*where, run_id, 20, 30, 40))
    assert resumed == run_id and "W&B" not in said
    assert server.history(run_id) == [(10, 1.0), (20, 2.0), (30, 3.0), (40, 4.0)]


def test_steps_done_again_after_a_crash_stay_once_in_the_chart(server, environment, tmp_path):
    where = environment, server.url, tmp_path / "out", "online"
    run_id, _ = end(start(*where, "", 0, 10, 20, 30))
    _, said = end(start(*where, run_id, 10, 20, 30, 40))
    assert "W&B" not in said
    assert server.history(run_id) == [(10, 1.0), (20, 2.0), (30, 3.0), (40, 4.0)]


def test_offline_segments_are_synced_into_one_run(server, environment, tmp_path):
    where = environment, server.url, tmp_path / "out", "offline"
    run_id, _ = end(start(*where, "", 0, 10, 20))
    time.sleep(1.1)  # run directories are named by the second
    end(start(*where, run_id, 10, 20, 30))  # 20 once more, as after a crash
    assert server.runs == {}
    said = sync(environment, server.url, tmp_path / "out" / "wandb")
    assert list(server.runs) == [run_id], said
    assert [step for step, _ in server.history(run_id)] == [10, 20, 20, 30]
    assert dict(server.history(run_id)) == {10: 1.0, 20: 2.0, 30: 3.0}


def test_a_run_of_a_sweep_takes_the_id_it_is_given(server, environment, tmp_path):
    given = {"WANDB_SWEEP_ID": "sw1", "WANDB_RUN_ID": "ab12"}
    run_id, said = end(
        start(environment | given, server.url, tmp_path / "ab12", "online", "", 0, 10)
    )
    assert run_id == "ab12" and "W&B" not in said
    assert server.runs[run_id]["sweep"] == "sw1"
    assert "displayName" not in server.runs[run_id], "the sweep names its runs"


def test_an_unreachable_server_means_offline(environment, tmp_path):
    with stand_in() as known:
        url = known.url  # nobody listens there any more
    began = time.monotonic()
    run_id, said = end(start(environment, url, tmp_path / "out", "online", "", 0, 10))
    assert time.monotonic() - began < 60
    assert said.count("W&B (online)") == 1
    (found,) = segments(tmp_path / "out")
    assert found.run.run_id == run_id and list(found.history) == [10]


def test_a_server_that_stops_answering_ends_no_run_late(server, environment, tmp_path):
    process = start(environment, server.url, tmp_path / "out", "online", "", 0, 10, 20)
    process.stdout.readline()
    server.silent.set()
    began = time.monotonic()
    process.stdin.close()
    try:
        assert process.wait(LIMIT_S) == 0
    finally:
        stop(process)
    assert time.monotonic() - began < 40
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 2


def test_an_export_of_an_untracked_run_or_a_broken_record_is_no_error(tmp_path, capsys):
    config = load(tmp_path)
    folder = save_checkpoint(config.path, 500, None, config)
    log_export(folder, save_export(config.path))
    assert segments(config.path) == []
    assert capsys.readouterr().err == ""
    (folder / "state.json").write_text("{")
    log_export(folder, config.path / "export")
    assert "not recorded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "netrc", "mode"),
    [
        ({}, "", "offline"),
        ({"WANDB_API_KEY": "k"}, "", "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "", "offline"),
        ({"WANDB_MODE": "disabled"}, "", "off"),
        ({}, "machine api.wandb.ai login user password k", "online"),
        ({"WANDB_BASE_URL": "https://w.example.org"}, "machine api.wandb.ai", "offline"),
        ({"WANDB_BASE_URL": "https://w.example.org"}, "machine w.example.org", "online"),
    ],
)
def test_auto_is_online_when_logged_in(environment, netrc, mode, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text(netrc)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _mode(load_config([]).training.wandb) == mode


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def package(folder):
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    return folder


def test_a_checkout_has_a_commit_and_may_be_dirty(tmp_path):
    ours = package(tmp_path / "ours")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = code_version(ours)
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    assert clean["package"] == __version__
    (ours / "__init__.py").write_text("changed = 1\n")
    assert code_version(ours) == clean | {"dirty": True}
    assert git_root(ours) == str(tmp_path)


def test_an_installed_package_has_none(tmp_path, monkeypatch):
    nothing = {"package": __version__, "commit": None, "dirty": None}
    assert code_version(package(tmp_path / "plain")) == nothing
    git(tmp_path, "init")  # a repository around an environment with the package is another's
    assert code_version(tmp_path / "plain") == nothing
    monkeypatch.setenv("PATH", "")
    assert code_version(tmp_path / "plain") == nothing
