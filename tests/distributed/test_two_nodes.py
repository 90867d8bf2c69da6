"""A run on two machines: one dies and comes back, or the cable between them is cut."""

import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.shards.build import build_shards
from msa_train import checkpoint_folders
from msa_train.config import load_config
from msa_train.training.last_words import read
from tests.distributed.ranks import free_port
from tests.distributed.runs import logged, settings
from tests.distributed.two_nodes import two_launchers, two_nodes, write_ssh
from tests.faults.killing import start

pytestmark = pytest.mark.slow
STEPS, SAVED, TIMEOUT_S = 80, 10, 20
MASTER = "node-1:29500"
LAUNCH = Path(__file__).resolve().parents[2] / "launch"
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def arguments(output):
    return settings(
        output, stages=f"[{{name: main, steps: {STEPS}, epochs: {STEPS // 2}, lr: 1e-2}}]",
        training__checkpoint_every=SAVED, training__document_parallel=2,
        training__timeout_s=TIMEOUT_S,
    )  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    build_shards(load_config(arguments("unused")).corpus, folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    """The same run with two ranks of one machine."""
    output = tmp_path_factory.mktemp("undisturbed")
    (output / "shards").symlink_to(shards)
    assert start(arguments(output), output / "log").wait() == [0, 0]
    return outcome(output)


def outcome(output):
    """Final weights, and every loss on the way to them."""
    last = next(checkpoint_folders.newest_first(output / "checkpoints"))
    losses = [(row["step"], row["loss/lm"], row["loss/router"]) for row in logged(output)]
    return (last / "weights-tp0.safetensors").read_bytes(), losses


@pytest.fixture
def folder(shards, tmp_path):
    """Of a run that has its settings and shards."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "shards").symlink_to(shards)
    load_config(arguments(tmp_path / "run")).save(tmp_path / "run.yaml")
    return tmp_path


@pytest.fixture
def nodes():
    with two_nodes() as made:
        yield made


def begin(node, folder, master):
    """Starts torchrun on a node, without ssh."""
    command = ["sh", str(LAUNCH / "without_ssh.sh"), str(folder / "run.yaml")]
    where = {"NODES": "2", "GPUS": "1", "MASTER": master, "PATH": PATH}
    return node.start(command, where, folder / node.name)


def saved(folder):
    first = folder / "run" / "checkpoints" / checkpoint_folders.name_of(SAVED)
    wait(first.exists, 120, folder)


def said(folder):
    return "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("node-*")))


def wait(found, seconds, folder):
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, f"not within {seconds} s: {said(folder)}"
        time.sleep(0.1)


@pytest.mark.parametrize("make", [two_nodes, two_launchers])
def test_a_machine_dies_and_comes_back(folder, make, undisturbed):
    """torchrun on the other one waits for it; both go on from the newest checkpoint."""
    with make() as nodes:
        port = free_port()
        master = f"{nodes[0].host}:{port}"
        launchers = [begin(nodes[0], folder, master)]
        if make is two_launchers:  # of one machine: all meet at the first that has the port
            wait(lambda: _listened_to(port), 60, folder)
        launchers.append(begin(nodes[1], folder, master))
        saved(folder)
        nodes[1].die()
        launchers[1] = begin(nodes[1], folder, master)
        assert [each.wait(180) for each in launchers] == [0, 0], said(folder)
    assert outcome(folder / "run") == undisturbed


def _listened_to(port):
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


def test_where_the_machine_dies_that_all_meet_at_both_are_started_again(folder, nodes, undisturbed):
    launchers = [begin(node, folder, MASTER) for node in nodes]
    saved(folder)
    nodes[0].die()
    assert launchers[1].wait(120) != 0
    again = [begin(node, folder, MASTER) for node in nodes]
    assert [each.wait(180) for each in again] == [0, 0], said(folder)
    assert outcome(folder / "run") == undisturbed


def test_a_cut_cable_ends_the_ranks_and_the_run_goes_on_later(folder, nodes, undisturbed):
    """Each machine says on its own where both ranks were stuck: their output is on storage that
    both still reach."""
    launchers = [begin(node, folder, MASTER) for node in nodes]
    saved(folder)
    nodes[0].plug(False)
    for node in nodes:  # of which torchrun is left
        wait(lambda node=node: len(node.processes()) == 1, 4 * TIMEOUT_S, folder)
        told = (folder / node.name).read_text()
        assert f"no progress for {TIMEOUT_S} s (training.timeout_s)" in told
        assert all(f"on {each.name}) is stuck in step" in told for each in nodes)
    nodes[0].plug(True)
    for node, launcher in zip(nodes, launchers, strict=True):
        node.die()
        launcher.wait(10)
    again = [begin(node, folder, MASTER) for node in nodes]
    assert [each.wait(180) for each in again] == [0, 0], said(folder)
    assert outcome(folder / "run") == undisturbed


def by_ssh(folder, nodes, hosts, *more):
    """Starts `msa train --hostfile` on the first node, through pdsh."""
    if shutil.which("pdsh") is None:
        pytest.skip("no command pdsh, which DeepSpeed's launcher calls")
    write_ssh(folder, nodes)
    (folder / "hosts").write_text(hosts)
    train = [sys.executable, "-m", "msa_train.cli", "train", "--config", str(folder / "run.yaml")]
    command = [*train, "--hostfile", str(folder / "hosts"), *more]
    return nodes[0].start(command, {"PATH": f"{folder}{os.pathsep}{PATH}"}, folder / nodes[0].name)


BOTH = "node-1 slots=1\nnode-2 slots=1\n"


@pytest.mark.parametrize("hosts", [BOTH, "node-2 slots=2\n"])
def test_ctrl_c_where_the_run_was_started_saves_on_all_machines(folder, nodes, hosts):
    """The ranks are no processes of that machine; of one other machine neither."""
    launcher = by_ssh(folder, nodes, hosts, "--max-restarts", "1")
    saved(folder)
    there = {each.code for each in read(folder / "run").values() if each.host == "node-2"}
    assert there == {None}
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(60) == 130, said(folder)
    told = (folder / nodes[0].name).read_text()
    assert told.count("training stopped: msa train was told to end at step") == 1
    assert "no step was saved" not in told and "restart" not in told
    step = checkpoint_folders.last_step(folder / "run" / "checkpoints")
    assert SAVED <= step == logged(folder / "run")[-1]["step"] < STEPS
    assert {each.code for each in read(folder / "run").values()} == {143}
    assert not [process for node in nodes for process in node.processes()]


def test_a_run_by_ssh_starts_a_machine_that_died_again(folder, nodes, undisturbed):
    launcher = by_ssh(folder, nodes, BOTH, "--max-restarts", "1")
    saved(folder)
    nodes[1].die()
    assert launcher.wait(180) == 0, said(folder)
    told = (folder / nodes[0].name).read_text()
    assert f"on {nodes[1].name}) was killed or stopped, or its machine is gone" in told
    assert told.count("restart 1 of 1, from") == 1
    assert outcome(folder / "run") == undisturbed
