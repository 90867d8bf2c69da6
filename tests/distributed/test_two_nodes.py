"""Two machines without ssh, as two network namespaces: one dies or is cut off, and comes back."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from data_pipeline.shards.build import build_shards
from msa_train import checkpoint_folders
from msa_train.config import load_config
from msa_train.training import last_words
from tests.distributed.runs import logged, settings

ADDRESSES = ("10.231.7.1", "10.231.7.2")
STEPS, TIMEOUT_S = 40, 15
LIMIT_S = 400


def _ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


@contextmanager
def _joined():
    """Two namespaces joined by a veth pair; skips, saying why, where there can be none."""
    if os.geteuid() or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("network namespaces need root, ip (iproute2) and unshare (util-linux)")
    names = [f"msa-{os.getpid()}-{node}" for node in (0, 1)]
    links = [f"m{os.getpid()}n{node}" for node in (0, 1)]
    try:
        for name in names:
            made = _ip("netns", "add", name)
            if made.returncode:
                pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
        _ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for name, link, address in zip(names, links, ADDRESSES, strict=True):
            for words in (
                ("link", "set", link, "netns", name),
                ("-n", name, "addr", "add", f"{address}/24", "dev", link),
                ("-n", name, "link", "set", link, "up"),
                ("-n", name, "link", "set", "lo", "up"),
            ):
                done = _ip(*words)
                assert not done.returncode, done.stderr
        yield list(zip(names, links, strict=True))
    finally:
        for name in names:
            _ip("netns", "del", name)


class Node:
    """A machine's launcher: launch/without_ssh.sh, under a host name of its own."""

    def __init__(self, number, name, link, folder, config):
        self.number, self.log = number, folder / f"log{number}"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {
            "PATH": path, "NODES": "2", "GPUS": "1", "MASTER": f"{ADDRESSES[0]}:29517",
            "ADDRESS": ADDRESSES[number], "GLOO_SOCKET_IFNAME": link,
            "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1",
        }  # fmt: skip
        inside = f"hostname node{number} && exec sh launch/without_ssh.sh {config}"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", inside],
                stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip

    @property
    def said(self):
        return self.log.read_text()

    def kill(self):
        """All its processes at once: torchrun's ranks lead sessions of their own."""
        with_ranks = [self.process.pid]
        if psutil.pid_exists(self.process.pid):
            family = psutil.Process(self.process.pid).children(recursive=True)
            with_ranks += [each.pid for each in family]
        for process in with_ranks:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(30)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder of shards, its settings)."""
    folder = tmp_path_factory.mktemp("nodes")
    build_shards(load_config(_settings(folder)).corpus, folder / "shards", 1)
    return folder


def _settings(output, **more):
    stages = f"[{{name: main, steps: {STEPS}, epochs: {STEPS // 2}, lr: 1e-2, router_weight: 1}}]"
    return settings(
        output, stages=stages, training__timeout_s=TIMEOUT_S, training__checkpoint_every=5,
        training__document_parallel=2, **more,
    )  # fmt: skip


@pytest.fixture
def start(run, tmp_path):
    """Starts node 0 or 1, in an output of its own."""
    config = load_config(_settings(tmp_path / "run", training__shards=run / "shards"))
    config.save(tmp_path / "run.yaml")
    nodes = []
    with _joined() as places:

        def started(number):
            nodes.append(Node(number, *places[number], tmp_path, tmp_path / "run.yaml"))
            return nodes[-1]

        started.output, started.places = config.path, places
        try:
            yield started
        finally:
            for node in nodes:
                node.kill()


def _wait(found, what):
    deadline = time.monotonic() + LIMIT_S
    while not (seen := found()):
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)
    return seen


def _finish(nodes):
    for node in nodes:
        assert node.process.wait(LIMIT_S) == 0, node.said[-3000:]


def _weights(output):
    newest = next(iter(checkpoint_folders.newest_first(output / "checkpoints")))
    assert newest.name == checkpoint_folders.name_of(STEPS)
    return (newest / "weights-tp0.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory):
    """Final weights of two ranks of one machine, whom nobody disturbs."""
    from tests.faults.killing import start as start_ranks

    output = tmp_path_factory.mktemp("undisturbed")
    found = _settings(output, training__shards=run / "shards")
    assert start_ranks(found, output / "log").wait() == [0, 0], (output / "log").read_text()
    return _weights(output)


def _stepping(nodes, output, step):
    rows = output / "metrics.jsonl"
    _wait(
        lambda: rows.exists() and logged(output) and logged(output)[-1]["step"] >= step,
        lambda: "\n".join(node.said[-2000:] for node in nodes),
    )


@pytest.mark.slow
def test_a_node_that_was_killed_comes_back(start, undisturbed):
    nodes = [start(0), start(1)]
    _stepping(nodes, start.output, 3)
    hosts = {each.host for each in last_words.read(start.output).values()}
    assert hosts == {"node0", "node1"}
    nodes[1].kill()
    killed = time.time()
    nodes[1] = start(1)
    _finish(nodes)
    assert all(each.began > killed for each in last_words.read(start.output).values())
    assert _weights(start.output) == undisturbed


@pytest.mark.slow
def test_a_link_that_was_cut_is_told_and_the_run_goes_on_over_it(start, undisturbed):
    nodes = [start(0), start(1)]
    _stepping(nodes, start.output, 3)
    name, link = start.places[1]
    assert not _ip("-n", name, "link", "set", link, "down").returncode
    _wait(
        lambda: "look at the network between" in nodes[0].said + nodes[1].said,
        lambda: nodes[0].said[-3000:] + nodes[1].said[-3000:],
    )
    said = nodes[0].said + nodes[1].said
    assert "on node0)" in said and "on node1)" in said
    assert not _ip("-n", name, "link", "set", link, "up").returncode
    for node in nodes:  # an agent whose store was away for long may have ended with its ranks
        node.kill()
    _finish([start(0), start(1)])
    assert _weights(start.output) == undisturbed
