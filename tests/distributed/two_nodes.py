"""Two machines, as far as one can be two: network namespaces with a cable between them, an address,
a name and a table of names each; or two launchers that meet over loopback."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.distributed.ranks import ENVIRONMENT

_HOSTS = Path("/etc/netns")  # `ip netns exec` shows a namespace its own files of /etc from there
_SUBNET = "10.77.0"


class Launcher:
    """A launcher on this machine, and what it starts, which its environment tells apart."""

    def __init__(self, number: int):
        self.name, self.host = f"node-{number}", "localhost"
        self._mark = "MSA_TEST_NODE", f"{os.getpid()}-{number}"

    def start(
        self, command: list[str], environment: Mapping[str, str], log: Path
    ) -> subprocess.Popen:
        """A command on it, which prints into a log."""
        name, value = self._mark
        return _start(command, {**environment, name: value}, log)

    def processes(self) -> list[int]:
        return [number for number in psutil.pids() if _environment(number, *self._mark)]

    def die(self) -> None:
        """As without power: nothing of it lives on, and nobody is told."""
        for number in self.processes():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


class Node(Launcher):
    """A machine: `name` resolves to `address`, on both."""

    def __init__(self, number: int):
        super().__init__(number)
        self.host = self.name
        self.address = f"{_SUBNET}.{number}"
        self.space = f"msa-test-{os.getpid()}-{number}"
        self.cable = f"msa{os.getpid() % 100_000}-{number}"  # 15 characters at most

    def start(
        self, command: list[str], environment: Mapping[str, str], log: Path
    ) -> subprocess.Popen:
        inside = ["ip", "netns", "exec", self.space, "unshare", "--uts", "sh", "-c"]
        named = f'hostname {self.name}; exec "$@"', "sh"
        return _start([*inside, *named, *command], environment, log)

    def processes(self) -> list[int]:
        return list(map(int, _ip("netns", "pids", self.space).split()))

    def plug(self, there: bool) -> None:
        _ip("-n", self.space, "link", "set", self.cable, "up" if there else "down")


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Skips, saying why, where the system does not let us make them."""
    nodes = Node(1), Node(2)
    try:
        for node in nodes:
            _make(node)
        _connect(*nodes)
        yield nodes
    finally:
        for node in nodes:
            _remove(node)


@contextmanager
def two_launchers() -> Iterator[tuple[Launcher, Launcher]]:
    both = Launcher(1), Launcher(2)
    try:
        yield both
    finally:
        for each in both:
            each.die()


def write_ssh(folder: Path, nodes: tuple[Node, Node]) -> None:
    """A command `ssh [OPTIONS] NODE COMMAND`, which hands on as little environment as a login."""
    login = f"HOME={folder} PATH=/usr/sbin:/usr/bin:/sbin:/bin OMP_NUM_THREADS=1"
    spaces = "\n".join(f"    {node.name}) space={node.space} ;;" for node in nodes)
    file = folder / "ssh"
    file.write_text(f"""#!/bin/sh
while true; do case $1 in -o) shift 2 ;; -*) shift ;; *) break ;; esac; done
node=$1
shift
case $node in
{spaces}
esac
exec ip netns exec "$space" unshare --uts env -i {login} sh -c "hostname $node; $*"
""")
    file.chmod(0o755)


def _start(command: list[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen:
    with log.open("a") as out:
        return subprocess.Popen(
            command, env=os.environ | ENVIRONMENT | environment, stdout=out, stderr=out
        )


def _environment(process: int, name: str, value: str) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(process).environ().get(name) == value
    return False


def _make(node: Node) -> None:
    if shutil.which("ip") is None:
        pytest.skip("no command ip (iproute2): nodes need network namespaces")
    try:
        _ip("netns", "add", node.space)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace may be made here: {error.stderr.strip()}")
    (_HOSTS / node.space).mkdir(parents=True)
    names = (f"{each.address} {each.name}\n" for each in (Node(1), Node(2)))
    (_HOSTS / node.space / "hosts").write_text("127.0.0.1 localhost\n" + "".join(names))


def _connect(one: Node, other: Node) -> None:
    ends = "netns", one.space, "type", "veth", "peer", "name", other.cable, "netns", other.space
    _ip("link", "add", one.cable, *ends)
    for node in (one, other):
        _ip("-n", node.space, "addr", "add", f"{node.address}/24", "dev", node.cable)
        _ip("-n", node.space, "link", "set", "lo", "up")
        node.plug(True)


def _remove(node: Node) -> None:
    with suppress(subprocess.CalledProcessError):  # it was never made
        node.die()
        _ip("netns", "del", node.space)
    shutil.rmtree(_HOSTS / node.space, ignore_errors=True)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout
