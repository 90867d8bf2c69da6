"""Connections that say nothing, or half of something: they are closed, nobody misses a place."""

import contextlib
import os
import resource
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from msa_train.serving import connections
from msa_train.serving.connections import connections_within
from tests.serving.running import running, wait_for
from tests.serving.slow_engine import SlowEngine

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "x"}]}
HALF = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localh"
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextlib.contextmanager
def connected(client, count, *sent):
    """Sockets to a server; each sends one of `sent`, in turn."""
    with contextlib.ExitStack() as stack:
        found = []
        for place in range(count):
            where = client.base_url.host, client.base_url.port
            found.append(stack.enter_context(socket.create_connection(where, timeout=10)))
            found[-1].sendall(sent[place % len(sent)])
        yield found


def closed(each, seconds=5.0) -> bool:
    """Whether the server closes a connection in time; what it sends before is read."""
    each.settimeout(seconds)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while each.recv(65536):
            pass
    return True


def test_a_head_that_does_not_come_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_S", 0.5)
    answers = SlowEngine()
    with (
        running(tmp_path, answers) as (client, _),
        connected(client, 6, b"", HALF) as silent,
        ThreadPoolExecutor(1) as pool,
    ):
        asking = pool.submit(client.post, CHAT, json=ASK)  # a request may take longer
        assert all(closed(each) for each in silent)
        answers.go.set()
        assert asking.result(10).status_code == 200


def test_a_head_that_trickles_is_not_waited_for_either(tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_S", 0.5)
    with running(tmp_path) as (client, _), connected(client, 1, WHOLE) as (slow,):
        assert slow.recv(9).startswith(b"HTTP/1.1")
        began = time.monotonic()
        with pytest.raises(OSError):
            for byte in HALF * 20:
                slow.sendall(bytes([byte]))
                time.sleep(0.03)
        assert time.monotonic() - began < 15


def test_idle_connections_give_way_to_new_ones(tmp_path):
    answers = SlowEngine()
    with (
        running(tmp_path, answers, connections=12) as (client, server),
        ThreadPoolExecutor(8) as pool,
    ):
        asking = [pool.submit(client.post, CHAT, json=ASK) for _ in range(8)]
        wait_for(lambda: len(answers.streams) == 8)
        with connected(client, 60, b"", HALF):
            for _ in range(5):
                assert httpx.get(f"{client.base_url}/healthz").status_code == 200
            assert len(server.server_state.connections) <= 13
            answers.go.set()
            assert {each.result(10).status_code for each in asking} == {200}


def test_where_none_is_idle_a_new_one_is_closed(tmp_path):
    answers = SlowEngine()
    with (
        running(tmp_path, answers, connections=2) as (client, _),
        ThreadPoolExecutor(2) as pool,
    ):
        asking = [pool.submit(client.post, CHAT, json=ASK) for _ in range(2)]
        wait_for(lambda: len(answers.streams) == 2)
        with connected(client, 1, b"") as (late,):
            assert closed(late)
        answers.go.set()
        assert {each.result(10).status_code for each in asking} == {200}


def test_connections_leave_descriptors_for_the_banks_files(monkeypatch):
    opened = len(os.listdir("/dev/fd"))
    for free, asked, expected in (
        (80, 1000, (40, 2)),
        (80, 20, (20, 1)),
        (8192, 1000, (1000, 62)),
        (-5, 1000, (1, 1)),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, free=free: (free + opened, 1 << 20))
        assert connections_within(asked) == expected
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert connections_within(1000) == (1000, 62)
