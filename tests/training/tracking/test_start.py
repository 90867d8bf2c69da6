"""How a run starts: its code and mode; and online, against a stand-in server: what is sent, resume,
sync, and a server that fails.

The real server is not here: docs/tracking.md lists what that leaves untested.
"""

import os
import runpy
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path

import pytest

from msa_train import __version__
from msa_train.config import load_config
from msa_train.training.reporter import Reporter
from msa_train.training.tracking.start import _mode, code_version, git_root, log_export
from tests.distributed.ranks import Apart
from tests.training.tracking.runs import load, save_checkpoint, save_export
from tests.training.tracking.wandb_files import segments
from tests.training.tracking.wandb_server import StandIn, stand_in

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 60
ANSWERS_S, SILENT_S = 30, 5  # how long a server is waited for: one that answers, one that does not


def train(driver, output, mode, wait_s, run_id, first, *steps):
    """Logs these steps, and waits with its end until the driver says a word."""
    settings = {"mode": mode, "init_timeout_s": wait_s, "finish_timeout_s": wait_s,
                "group": "sizes", "tags": "[a]"}  # fmt: skip
    chosen = [part for k, v in settings.items() for part in (f"--training.wandb.{k}", str(v))]
    config = load_config(["--output", str(output), *chosen])
    reporter = Reporter(config, run_id or None, first_step=first, steps=100, rank=0)
    driver.send(reporter.wandb_id)
    for step in steps:
        reporter.log(step, {"loss/lm": step / 10, "loss/router": 1.0, "lr": 1e-3, "step_ms": 1.0})
    driver.recv()
    reporter.finish()


class Run:
    """A process that trains, and waits before its end."""

    def __init__(self, environment, url, output, mode, run_id, first, *steps, wait_s=ANSWERS_S):
        output.mkdir(exist_ok=True)
        self._process, process = Pipe()
        environment = environment | {"WANDB_BASE_URL": url}
        given = train, process, output, mode, wait_s, run_id, first, *steps
        self._apart = Apart(output, environment, *given)
        process.close()

    def has_begun(self):
        """Its id, once it has one."""
        return self._process.recv()

    def end(self, run_id=None):
        """(id, standard error), and no process of W&B is left. run_id: where it is known."""
        try:
            run_id = run_id or self.has_begun()
            self._process.send("end")
        finally:
            done = self._apart.end(LIMIT_S)
        assert done.code == 0, done.err
        return run_id, done.err


def wandb_sync(folder):
    os.chdir(folder.parent)
    sys.argv = ["wandb", "sync", str(folder), "--yes"]
    runpy.run_module("wandb", run_name="__main__")


def sync(environment, url, folder):
    """What `wandb sync` says."""
    environment = environment | {"WANDB_BASE_URL": url}
    done = Apart(folder.parent, environment, wandb_sync, folder).end(LIMIT_S)
    assert done.code == 0, done.err
    return done.out + done.err


@dataclass
class Case:
    """A server of its own, and a folder whose runs send to it."""

    server: StandIn
    environment: dict[str, str]
    folder: Path

    def run(self, mode, run_id, first, *steps, name="out", wait_s=ANSWERS_S, **given):
        where = self.environment | given, self.server.url, self.folder / name
        return Run(*where, mode, run_id, first, *steps, wait_s=wait_s)

    def trained(self, run_id, first, *steps):
        """(id, standard error, the chart) after an online run."""
        run_id, said = self.run("online", run_id, first, *steps).end()
        return run_id, said, self.server.history(run_id)


def resumed(case):
    first = case.trained("", 0, 10, 20)
    return first, case.trained(first[0], 20, 30, 40)


def crashed(case):
    first = case.trained("", 0, 10, 20, 30)
    return first, case.trained(first[0], 10, 20, 30, 40)


def synced(case):
    run_id, _ = case.run("offline", "", 0, 10, 20).end()
    time.sleep(1.1)  # run directories are named by the second
    case.run("offline", run_id, 10, 20, 30).end()  # 20 once more, as after a crash
    before = dict(case.server.runs)
    return run_id, before, sync(case.environment, case.server.url, case.folder / "out" / "wandb")


def swept(case):
    given = {"WANDB_SWEEP_ID": "sw1", "WANDB_RUN_ID": "ab12"}
    return case.run("online", "", 0, 10, name="ab12", **given).end()


def lost(case):
    """A row that was logged before the checkpoint, but handed over after the rank was killed."""
    charts = {}
    for mode in ("online", "offline"):
        run_id, _ = case.run(mode, "", 0, 10, name=mode).end()
        with (case.folder / mode / "metrics.jsonl").open("a") as file:
            file.write('{"step": 20, "loss/lm": 2.0, "grad_norm": null}\n')
        time.sleep(1.1)  # run directories are named by the second
        case.run(mode, run_id, 20, 30, name=mode).end()
        charts[mode] = run_id
    found = [list(each.history) for each in segments(case.folder / "offline")]
    return case.server.history(charts["online"]), found


def unreachable(case):
    with stand_in() as known:
        url = known.url  # nobody listens there any more
    began = time.monotonic()
    where = case.environment, url, case.folder / "out"
    run_id, said = Run(*where, "online", "", 0, 10, wait_s=SILENT_S).end()
    return run_id, said, time.monotonic() - began


def silenced(case):
    run = case.run("online", "", 0, 10, 20, wait_s=SILENT_S)
    run_id = run.has_begun()
    case.server.silent.set()
    began = time.monotonic()
    run.end(run_id)
    return time.monotonic() - began


CASES = (resumed, crashed, synced, lost, silenced, unreachable, swept)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """What each of CASES returns, with its Case. Two at once: they wait more than they work."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}

    def found(function):
        folder = tmp_path_factory.mktemp(function.__name__)
        home = {f"WANDB_{name}_DIR": str(folder / "home") for name in ("DATA", "CACHE", "CONFIG")}
        with stand_in() as server:
            case = Case(server, ours | home | {"WANDB_API_KEY": "k" * 40}, folder)
            return case, function(case)

    with ThreadPoolExecutor(2) as pool:
        started = {function: pool.submit(found, function) for function in CASES}
        yield lambda function: started[function].result()


def test_an_online_run_sends_its_numbers_and_resumes_in_the_same_chart(cases):
    case, ((run_id, said, chart), (again, said_again, whole)) = cases(resumed)
    assert "W&B" not in said + said_again
    assert again == run_id
    sent = case.server.runs[run_id]
    assert (sent["groupName"], sent["jobType"], sent["displayName"]) == ("sizes", "train", "out")
    assert list(sent["tags"]) == ["a"]
    assert chart == [(10, 1.0), (20, 2.0)]
    assert whole == [(10, 1.0), (20, 2.0), (30, 3.0), (40, 4.0)]


def test_steps_done_again_after_a_crash_stay_once_in_the_chart(cases):
    _, (_, (_, said, chart)) = cases(crashed)
    assert "W&B" not in said
    assert chart == [(10, 1.0), (20, 2.0), (30, 3.0), (40, 4.0)]


def test_offline_segments_are_synced_into_one_run(cases):
    case, (run_id, before, said) = cases(synced)
    assert before == {}
    assert list(case.server.runs) == [run_id], said
    assert [step for step, _ in case.server.history(run_id)] == [10, 20, 20, 30]
    assert dict(case.server.history(run_id)) == {10: 1.0, 20: 2.0, 30: 3.0}


def test_what_a_killed_rank_had_not_handed_over_is_sent_when_it_is_resumed(cases):
    _, (online, offline) = cases(lost)
    assert online == [(10, 1.0), (20, 2.0), (30, 3.0)], "each once"
    assert offline == [[10], [20, 30]]


def test_a_run_of_a_sweep_takes_the_id_it_is_given(cases):
    case, (run_id, said) = cases(swept)
    assert run_id == "ab12" and "W&B" not in said
    assert case.server.runs[run_id]["sweep"] == "sw1"
    assert "displayName" not in case.server.runs[run_id], "the sweep names its runs"


def test_an_unreachable_server_means_offline(cases):
    case, (run_id, said, seconds) = cases(unreachable)
    assert seconds < 60
    assert said.count("W&B (online)") == 1
    (segment,) = segments(case.folder / "out")
    assert segment.run.run_id == run_id and list(segment.history) == [10]


def test_a_server_that_stops_answering_ends_no_run_late(cases):
    case, seconds = cases(silenced)
    assert seconds < 40
    assert len((case.folder / "out" / "metrics.jsonl").read_text().splitlines()) == 2


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
