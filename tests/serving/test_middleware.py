"""How much is let in: bodies, documents, answers at once, time; and who is not let in at all."""

import logging
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serving.running import leave, running, wait_for
from tests.serving.slow_engine import EndlessEngine, SlowEngine

ASK = {"messages": [{"role": "user", "content": "x"}]}
CHAT = "/v1/chat/completions"
DOCUMENTS = "/v1/memory/banks/notes/documents"


def test_what_takes_too_long_is_ended(tmp_path):
    answers = SlowEngine()
    with running(tmp_path, answers, timeout_s=0.5) as (client, server):
        whole = client.post(CHAT, json=ASK)
        assert whole.status_code == 504 and whole.json()["error"]["code"] == "timeout"
        stream = client.post(CHAT, json=ASK | {"stream": True})
        assert stream.status_code == 200 and stream.text.count("data: ") >= 2
        assert '"timeout"' in stream.text and "[DONE]" not in stream.text
        assert all(each.cancelled.is_set() for each in answers.streams)
        assert server._state.answering.running == 0


def test_a_client_that_does_not_read_holds_nothing(tmp_path, caplog):
    answers = EndlessEngine()
    with (
        running(tmp_path, answers, timeout_s=1) as (client, server),
        socket.create_connection((client.base_url.host, client.base_url.port)) as raw,
    ):
        body = b'{"messages": [{"role": "user", "content": "x"}], "stream": true}'
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        wait_for(lambda: answers.streams)
        assert answers.streams[0].cancelled.wait(5)
        wait_for(lambda: not server._state.requests)
        wait_for(lambda: not server.server_state.connections)
        assert server._state.answering.running == 0
        assert client.get("/healthz").status_code == 200
    assert not [each for each in caplog.records if each.exc_info]


def test_bodies_are_bounded(tmp_path):
    with running(tmp_path, body_mb=0.001, batch=2) as (client, _):
        long = {"documents": [{"text": "x" * 2000}]}
        declared = client.post(DOCUMENTS, json=long)
        assert declared.status_code == 413 and "1,000 bytes" in declared.json()["error"]["message"]

        def pieces():
            for _ in range(20):
                yield b"x" * 100

        headers = {"Content-Type": "application/json"}
        chunked = client.post(DOCUMENTS, content=pieces(), headers=headers)
        assert chunked.status_code == 413
        assert chunked.json()["error"]["code"] == "body_too_large"
        many = client.post(DOCUMENTS, json={"documents": [{"text": "x"}] * 3})
        assert many.status_code == 413 and "2 at most" in many.json()["error"]["message"]
        assert client.get("/v1/memory/banks/notes").json()["documents"] == 7


def test_all_bodies_together_are_bounded(tmp_path):
    answers, long = SlowEngine(), {"role": "system", "content": "x" * 600}
    ask = {"messages": [long, *ASK["messages"]]}
    with (
        running(tmp_path, answers, body_mb=0.001) as (client, server),
        ThreadPoolExecutor(25) as pool,
    ):
        service = server._state
        begun = [pool.submit(client.post, CHAT, json=ask) for _ in range(23)]
        wait_for(lambda: len(answers.streams) == 23)
        assert 15_000 < service.held_bytes < 16_000
        more = [client.post(CHAT, json=ask) for _ in range(2) if service.held_bytes < 16_000]
        assert [each.status_code for each in more][-1] == 429
        assert "Retry-After" in more[-1].headers
        answers.go.set()
        assert {each.result(10).status_code for each in begun} == {200}
        wait_for(lambda: service.held_bytes == 0)
        assert client.post(CHAT, json=ask).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, "host_not_allowed"),
        ({"Host": "localhost.evil.example"}, "host_not_allowed"),
        ({"Host": "10.0.0.1"}, "host_not_allowed"),
        ({"Origin": "http://evil.example"}, "origin_not_allowed"),
        ({"Origin": "null"}, "origin_not_allowed"),
        ({"Origin": "http://["}, "origin_not_allowed"),
        ({"Origin": "http://localhost:1"}, "origin_not_allowed"),
    ],
)
def test_other_sites_are_not_let_in(http, headers, code):
    for method, path in (("GET", "/v1/memory/banks"), ("POST", CHAT), ("OPTIONS", CHAT)):
        response = http.request(method, path, headers=headers)
        assert response.status_code == 403 and response.json()["error"]["code"] == code
        assert "access-control-allow-origin" not in response.headers


def test_its_own_page_is_let_in(http):
    for host in ("localhost", "127.0.0.1", "[::1]:8000", "LOCALHOST:80"):
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert http.get("/healthz", headers=headers).status_code == 200


def test_every_answer_has_the_headers_of_a_closed_page(http):
    for path in ("/healthz", "/nothing", "/v1/models"):
        headers = http.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store" and "server" not in headers


def test_every_answer_has_the_id_of_its_request(http):
    for path in ("/healthz", "/nothing", "/v1/models"):
        given = http.get(path, headers={"X-Request-Id": "trace-7"})
        assert given.headers.get_list("x-request-id") == ["trace-7"]
        made = {http.get(path, headers={"X-Request-Id": "a b"}).headers["x-request-id"], ""}
        made |= {http.get(path).headers["x-request-id"]}
        assert len(made) == 3 and all(each.startswith("req_") for each in made if each)
    refused = http.get("/healthz", headers={"Host": "evil.example", "X-Request-Id": "7"})
    assert refused.status_code == 403 and refused.headers["x-request-id"] == "7"


QUESTION = b'{"messages": [{"role": "user", "content": "x"}], "stream": %s}'


@pytest.mark.parametrize("kind", ["body", "whole", "stream"])
def test_a_client_that_leaves_is_one_line_of_the_log(tmp_path, caplog, kind):
    caplog.set_level(logging.INFO)
    answers, path = SlowEngine(), CHAT
    with running(tmp_path, answers) as (client, server):
        state = server._state
        if kind == "body":
            path = "/v1/memory/banks/a%0A2026-11-27%20INFO%20DELETE%20bank%20200/search"
            leave(client, path, b"", 2, lambda: state.requests)
        else:
            body = QUESTION % (b"true" if kind == "stream" else b"false")
            leave(client, path, body, len(body), lambda: answers.streams)
        wait_for(lambda: not state.requests)
        metrics = client.get("/metrics").text
    lines = [each for each in caplog.records if "POST" in each.getMessage()]
    (line,) = [each.getMessage() for each in lines]
    assert "\n" not in line and " 499 " in line
    loud = [each for each in caplog.records if each.levelno > logging.INFO or each.exc_info]
    assert not loud
    assert 'method="POST"' in metrics and 'status="499"' in metrics
