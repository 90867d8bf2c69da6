"""A tiny export with banks on disk; a server over it in a thread, or as a process of its own."""

import contextlib
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import httpx

from msa_train.memory.bank.build import build_bank
from msa_train.memory.search.settings import TierSettings
from msa_train.serving.access import ApiKeys
from msa_train.serving.assemble import assemble
from msa_train.serving.banks import ServedModel
from msa_train.serving.server import Server, listen
from msa_train.serving.settings import AllowedHosts, ServerLimits
from msa_train.serving.state import ServerState
from tests.memory.tiny import FINGERPRINT, tiny_documents, tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
MODEL = ServedModel("tiny", tiny_model(), tiny_tokenizer(), FINGERPRINT)


def tiny_bank(path: Path, fingerprint=FINGERPRINT) -> Path:
    build_bank(path, tiny_model(), tiny_tokenizer(), tiny_documents(), fingerprint)
    return path


@contextlib.contextmanager
def running(folder: Path, engine=None, keys=None, hosts=None, words=None, retrieval=None, **limits):
    """(client, server) of a server in a thread: bank `notes`, and `banks/` to make more in."""
    state = state_of(folder, engine, keys, hosts, words, retrieval, **limits)
    listening = listen("127.0.0.1", 0)
    server = Server(state, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=30) as client:
            yield client, server
    finally:
        server.stop()
        thread.join(20)
        state.engine.stop()
        state.banks.close()
        assert not thread.is_alive()


def state_of(
    folder: Path, engine=None, keys=None, hosts=None, words=None, retrieval=None, **limits
) -> ServerState:
    path = folder / "notes"
    if not path.exists():
        tiny_bank(path)
    limits = ServerLimits(**{"drain_s": 5, "context_tokens": 2048, **limits})
    keys, hosts = keys or ApiKeys(), hosts or AllowedHosts.of("127.0.0.1")
    banks = folder / "banks"
    named, tiers = [("notes", path)], TierSettings()
    state = assemble(MODEL, named, banks, None, tiers, limits, keys, hosts, words, retrieval)
    if engine is not None:
        state.engine.stop()
        state.engine = engine
    return state


def wait_for(there, seconds: float = 10.0) -> None:
    """Fails when `there()` does not become true in time."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def leave(client, path, body, length, seen):
    """Sends a request, waits until `seen()`, and goes."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
        raw.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)
        wait_for(seen)


class ServeProcess:
    """`msa serve` as a process of its own, until it is closed. descriptors: that it may open."""

    def __init__(self, *arguments: object, descriptors: int | None = None):
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "msa_train.cli", "serve", *map(str, arguments), "--port", "0"],
            env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=None if descriptors is None else partial(_allow, descriptors),
        )  # fmt: skip
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+/", line)
        if not found:
            raise AssertionError(f"no server: {line}{self.process.stderr.read()}")
        self.url = found.group()[:-1]
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def end(self, signal: int, timeout: float = 30) -> tuple[int, str]:
        """Exit code and what was logged, after a signal."""
        self.process.send_signal(signal)
        return self.left(timeout)

    def left(self, timeout: float = 30) -> tuple[int, str]:
        self.http.close()
        _, logged = self.process.communicate(timeout=timeout)
        return self.process.returncode, logged

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def _allow(descriptors: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
