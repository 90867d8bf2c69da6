"""`msa bench serve`: clients that ask without a pause, each one question after the other."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msa_train.errors import ConfigError, RankError

CLIENTS, SECONDS = 32, 60.0
_TOKENS = 16  # of each answer
_START_S, _END_S, _ANSWER_S = 120.0, 60.0, 120.0
_AFTER_ERROR_S = 0.1
_SILENT_S = 0.2  # until silent connections are looked after again
_HALF = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localh"
_SAMPLES = 40  # of the server's memory, over the whole time


@dataclass
class _Seen:
    """What all clients saw. Times in seconds, of answers that came whole."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def take(self, found: tuple[float, float] | str) -> None:
        if isinstance(found, str):
            self.errors[found] += 1
        else:
            self.first.append(found[0])
            self.whole.append(found[1])


def measure(
    export: Path | None = None,
    bank: Path | None = None,
    url: str | None = None,
    clients: int = CLIENTS,
    seconds: float = SECONDS,
    retrieval: str = "generate",
    silent: int = 0,
) -> dict[str, Any]:
    """Against the server at `url`, or one that is started for `export` and `bank`. silent:
    connections that ask nothing, beside those of the clients.

    Milliseconds; memory of the server in MB, when every client had its first answer and at the end.
    """
    if (url is None) == (export is None or bank is None):
        raise ConfigError("bench serve: give --url, or --export and --bank")
    if clients < 1 or not seconds > 0:
        raise ConfigError(f"bench serve: {clients} clients, {seconds} seconds: give more than 0")
    if silent < 0:
        raise ConfigError(f"bench serve: {silent} silent connections: give 0 or more")
    with (
        _server(export, bank) if url is None else contextlib.nullcontext(url) as address,
        _silent(address, silent),
    ):
        return {"silent": silent, **_load(address, clients, seconds, retrieval)}


def _load(url: str, clients: int, seconds: float, retrieval: str) -> dict[str, Any]:
    questions = _questions(url)
    seen, warm, lock = _Seen(), threading.Barrier(clients + 1), threading.Lock()
    stopped = threading.Event()

    def client(number: int) -> None:
        with contextlib.closing(_connection(url)) as connection:
            _ask(connection, questions[number % len(questions)], retrieval)
            warm.wait(_ANSWER_S)
            place = number
            while not stopped.is_set():
                place += 1
                found = _ask(connection, questions[place % len(questions)], retrieval)
                with lock:
                    seen.take(found)
                if isinstance(found, str):
                    time.sleep(_AFTER_ERROR_S)

    threads = [threading.Thread(target=client, args=(n,), daemon=True) for n in range(clients)]
    for thread in threads:
        thread.start()
    try:
        warm.wait(_ANSWER_S)
    except threading.BrokenBarrierError:
        raise RankError(
            f"{url}: not every client had a first answer within {_ANSWER_S:g} s"
        ) from None
    began, memory = time.monotonic(), []
    while (left := began + seconds - time.monotonic()) > 0:
        memory.append(_resident_mb(url))
        time.sleep(min(left, seconds / _SAMPLES))
    stopped.set()
    for thread in threads:
        thread.join(_ANSWER_S)
    took = time.monotonic() - began
    return _report(seen, memory, clients, took, retrieval)


def _report(
    seen: _Seen, memory: list[float], clients: int, took: float, retrieval: str
) -> dict[str, Any]:
    quarter = max(len(memory) // 4, 1)
    first, last = sorted(memory[:quarter]), sorted(memory[-quarter:])
    before, after = first[len(first) // 2], last[len(last) // 2]
    return {
        "clients": clients,
        "seconds": round(took, 1),
        "retrieval": retrieval,
        "answers": len(seen.whole),
        "answers_per_s": round(len(seen.whole) / took, 2),
        "errors": sum(seen.errors.values()),
        "error_messages": dict(seen.errors.most_common(5)),
        "first_text_ms": _percentiles(seen.first),
        "answer_ms": _percentiles(seen.whole),
        "rss_mb": {"first_quarter": before, "last_quarter": after},
        "rss_growth_mb": round(after - before, 1),
    }


def _percentiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    at = {name: ordered[int(share * (len(ordered) - 1))] for name, share in _SHARES.items()}
    return {name: round(1000 * value, 1) for name, value in at.items()}


_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


def _ask(
    connection: http.client.HTTPConnection, question: str, retrieval: str
) -> tuple[float, float] | str:
    """Seconds to the first text and to the end; or what went wrong."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": _TOKENS,
        "stream": True,
        "memory": {"retrieval": retrieval},
    }
    began, first, ended = time.monotonic(), None, False
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            return f"{response.status}: {response.read()[:200].decode(errors='replace')}"
        for line in response:
            if line.startswith(b'data: {"error"'):
                return line[6:200].decode(errors="replace")
            if first is None and b'"content": ' in line and b'"content": ""' not in line:
                first = time.monotonic() - began
            ended = ended or line.startswith(b"data: [DONE]")
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return f"{type(error).__name__}: {error}"
    whole = time.monotonic() - began
    return (first or whole, whole) if ended else "the stream broke off"


def _questions(url: str) -> list[str]:
    """About the first documents of the server's first bank."""
    banks = _get(url, "/v1/memory/banks")["banks"]
    if not banks or not banks[0]["documents"]:
        raise ConfigError(f"bench serve: {url} serves no bank with documents")
    path = f"/v1/memory/banks/{banks[0]['name']}/documents?limit=100"
    beginnings = (" ".join(each["text"].split()[:6]) for each in _get(url, path)["documents"])
    return [f"What is said about {words}?" for words in beginnings if words]


def _resident_mb(url: str) -> float:
    found = re.search(r"^process_resident_memory_bytes (\S+)", _read(url, "/metrics"), re.M)
    if not found:
        raise ConfigError(f"bench serve: {url}/metrics does not say the server's memory")
    return round(float(found[1]) / 1e6, 1)


def _get(url: str, path: str) -> Any:
    return json.loads(_read(url, path))


def _read(url: str, path: str) -> str:
    with contextlib.closing(_connection(url)) as connection:
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            text = response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise ConfigError(f"bench serve: {url} does not answer: {error}") from error
    if response.status != 200:
        raise ConfigError(f"bench serve: {url}{path} answers {response.status}: {text[:200]}")
    return text


def _connection(url: str) -> http.client.HTTPConnection:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError:  # the port is no number, or too large
        host = None
    if host is None or parts.scheme != "http":
        raise ConfigError(f"bench serve: --url {url}: give http://HOST:PORT")
    return http.client.HTTPConnection(host, port, timeout=_ANSWER_S)


@contextlib.contextmanager
def _silent(url: str, count: int) -> Iterator[None]:
    """So many connections that send nothing or half a head; one that is closed is made anew."""
    stopped = threading.Event()

    def hold() -> None:
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(contextlib.closing(_connection(url))) for _ in range(count)]
            while not stopped.wait(_SILENT_S):
                for place, each in enumerate(held):
                    with contextlib.suppress(OSError):
                        _keep_silent(each, _HALF if place % 2 else b"")

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(_ANSWER_S)


def _keep_silent(connection: http.client.HTTPConnection, sent: bytes) -> None:
    if connection.sock is not None:
        with contextlib.suppress(BlockingIOError):
            if connection.sock.recv(1):
                return  # an error of the server's
            connection.close()
    if connection.sock is None:
        connection.connect()
        connection.sock.sendall(sent)
        connection.sock.setblocking(False)


@contextlib.contextmanager
def _server(export: Path, bank: Path) -> Iterator[str]:
    """`msa serve` as a process of its own. Raises RankError where it does not start or end."""
    command = [sys.executable, "-m", "msa_train.cli", "serve", str(export)]
    command += ["--bank", f"bank={bank}", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    late = threading.Timer(_START_S, process.kill)
    late.start()
    try:
        found = re.search(r"http://[^/\s]+", process.stdout.readline())
        late.cancel()
        if not found:
            raise RankError(f"bench serve: the server did not start within {_START_S:g} s")
        yield found[0]
        process.send_signal(signal.SIGTERM)
        if code := process.wait(_END_S):
            raise RankError(f"bench serve: the server ended with {code}")
    finally:
        late.cancel()
        process.kill()
        process.communicate()
