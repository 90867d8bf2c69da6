"""A server that is killed while clients add, ask, trickle and read slowly: what it said it had
added is there, nothing half, and the next server takes the bank up."""

import contextlib
import itertools
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Self

import httpx
import pytest

from msa_train.interop.export import load_export
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.verify import verify_bank
from tests.memory.tiny import tiny_export
from tests.serving.running import ServeProcess, tiny_bank, wait_for

CHAT, ADD = "/v1/chat/completions", "/v1/memory/banks/notes/documents"
ASK = {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 400}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    export = tiny_export(folder / "tiny")
    return export, tiny_bank(folder / "notes", load_export(export).fingerprint)


class Clients:
    """Threads at a server until it is gone. sent, added: texts by id, begun and acknowledged."""

    def __init__(self, url: str, serial: Callable[[], int]):
        self._url, self._serial, self._over = url, serial, threading.Event()
        self.sent: dict[str, str] = {}
        self.added: dict[str, str] = {}
        self.read = self.trickled = 0
        work = [self._add, self._add, self._ask, self._ask, *[self._trickle] * 8]
        self._threads = [threading.Thread(target=self._until_gone, args=(each,)) for each in work]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def at_work(self) -> bool:
        return len(self.added) > 2 and self.read > 0 and self.trickled > 500

    def _until_gone(self, once: Callable[[], None]) -> None:
        with contextlib.suppress(httpx.TransportError, OSError):
            while not self._over.is_set():
                once()

    def _add(self) -> None:
        name = f"sent {self._serial()}"
        document = {"id": name, "text": f"Text of {name}. " * random.randint(1, 40)}
        self.sent[name] = document["text"]
        with httpx.Client(base_url=self._url, timeout=30) as client:
            client.post(ADD, json={"documents": [document]}).raise_for_status()
        self.added[name] = document["text"]

    def _ask(self) -> None:
        with httpx.stream("POST", self._url + CHAT, json=ASK, timeout=30) as answer:
            for _ in answer.iter_bytes(64):
                self.read += 1
                time.sleep(0.02)

    def _trickle(self) -> None:
        """A document whose text never comes to its end."""
        host, port = self._url.removeprefix("http://").split(":")
        body = '{"documents": [{"id": "trickled", "text": "' + "x" * 10_000
        head = f"POST {ADD} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            for byte in f"{head}Content-Length: 20000\r\n\r\n{body}".encode():
                raw.sendall(bytes([byte]))
                self.trickled += 1
                if self._over.wait(0.005):
                    break


def killed_again_and_again(made, rounds: int) -> None:
    export, bank = made
    draw, serial = random.Random(7), itertools.count().__next__
    sent: dict[str, str] = {}
    added: dict[str, str] = {}
    for _ in range(rounds):
        with contextlib.closing(ServeProcess(export, "--bank", f"notes={bank}")) as server:
            for name, text in list(added.items())[-1:]:  # known to the next server
                found = server.http.get(ADD, params={"id": name}).json()["documents"]
                assert " ".join(part["text"] for part in found).split() == text.split()
            with Clients(server.url, serial) as clients:
                wait_for(clients.at_work, 60)
                time.sleep(draw.random())
                server.end(signal.SIGKILL)
        sent |= clients.sent
        added |= clients.added
        assert verify_bank(bank)["problems"] == []
        whole: dict[str, str] = {}
        for document in BankSnapshot.open(bank, load_export(export).fingerprint):
            whole[document.id] = f"{whole.get(document.id, '')} {document.text}"
        assert "trickled" not in whole
        for name, text in added.items():
            assert whole[name].split() == text.split()
        begun = [name for name in whole if name.startswith("sent ")]
        assert all(whole[name].split() == sent[name].split() for name in begun)


def test_a_server_killed_under_slow_clients_loses_nothing_it_had_added(made):
    killed_again_and_again(made, 2)


@pytest.mark.slow
def test_a_server_killed_many_times_loses_nothing_it_had_added(made):
    killed_again_and_again(made, 30)
