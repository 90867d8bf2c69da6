"""The end of a server: what runs may finish, what does not is cancelled, and nothing hangs."""

import contextlib
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from msa_train.interop.export import load_export
from tests.memory.tiny import tiny_export
from tests.serving.running import ServeProcess, running, tiny_bank, wait_for
from tests.serving.slow_engine import SlowEngine

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An export and a bank of it."""
    folder = tmp_path_factory.mktemp("made")
    exported = tiny_export(folder / "tiny")
    return exported, tiny_bank(folder / "notes", load_export(exported).fingerprint)


@pytest.fixture
def start(made):
    begun = []

    def start(*arguments, **allowed):
        given = made[0], "--bank", f"notes={made[1]}", *arguments
        begun.append(ServeProcess(*given, **allowed))
        return begun[-1]

    yield start
    for each in begun:
        each.close()


def test_what_runs_is_finished_and_nothing_new_begins(tmp_path):
    answers = SlowEngine()
    with running(tmp_path, answers, drain_s=20) as (client, server):
        results = []
        asking = threading.Thread(target=lambda: results.append(client.post(CHAT, json=ASK)))
        asking.start()
        wait_for(lambda: answers.streams)
        server.stop()
        wait_for(lambda: server._state.draining)
        for path in ("/v1/models", "/"):
            refused = client.get(path)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "shutting_down"
        assert client.get("/healthz").status_code == 503
        assert client.get("/metrics").status_code == 200
        answers.go.set()
        asking.join(10)
        assert results[0].json()["choices"][0]["message"]["content"] == "first last"
        wait_for(lambda: server.should_exit)


def test_what_does_not_end_is_cancelled(tmp_path):
    answers = SlowEngine()
    with running(tmp_path, answers, drain_s=0.3) as (client, server):
        results = {}

        def ask(stream):
            results[stream] = client.post(CHAT, json=ASK | {"stream": stream})

        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(answers.streams) == 2)
        server.stop()
        for thread in threads:
            thread.join(10)
        assert results[False].status_code == 503
        assert results[True].status_code == 200
        last = results[True].text.strip().splitlines()[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert all(each.cancelled.is_set() for each in answers.streams)


def test_a_signal_ends_the_process_in_order(start):
    server = start("--drain-s", 20)
    ask = ASK | {"max_tokens": 40, "memory": {"retrieval": "memory"}, "stream": True}
    with server.http.stream("POST", CHAT, json=ask) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        text = "\n".join(lines)
    assert text.rstrip().endswith("data: [DONE]")
    code, logged = server.left()
    assert code == 0 and "Traceback" not in logged, logged


def test_a_second_signal_ends_it_at_once(start):
    server = start("--drain-s", 100)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:  # a body that does not come
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        )
        server.process.send_signal(signal.SIGINT)
        wait_for(lambda: server.http.get("/healthz").status_code == 503)
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        server.process.wait(5)
    assert server.process.returncode == 128 + signal.SIGINT and time.monotonic() - began < 5


def test_silent_connections_keep_nobody_out_where_descriptors_are_few(start):
    """150 silent ones, half with half a head, beside 32 clients and 128 descriptors."""
    server = start(descriptors=128)
    host, port = server.url.removeprefix("http://").split(":")
    ask = ASK | {"max_tokens": 2, "memory": {"retrieval": "memory"}}

    def client(_):
        with httpx.Client(base_url=server.url, timeout=60) as http:
            return [http.post(CHAT, json=ask).status_code, http.get("/healthz").status_code]

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(32) as pool:
        seen = [pool.submit(client, place) for place in range(32)]
        for place in range(150):
            silent = socket.create_connection((host, int(port)), timeout=10)
            stack.enter_context(silent).sendall(b"" if place % 2 else b"POST / HTTP/1.1\r\nHo")
        seen += [pool.submit(client, place) for place in range(32)]
        assert all(each.result(60) == [200, 200] for each in seen)
        code, logged = server.end(signal.SIGTERM)
    assert code == 0 and "Traceback" not in logged and len(logged) < 30_000, logged[-2000:]
