"""How much is let in: bodies, documents, answers at once, time; and who is not let in at all."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from msa_train.errors import ConfigError
from msa_train.serving.settings import AllowedHosts, ServerLimits, check_host
from tests.serving.running import MODEL, running, wait_for
from tests.serving.slow_engine import EndlessEngine, SlowEngine

ASK = {"messages": [{"role": "user", "content": "x"}]}
CHAT = "/v1/chat/completions"
DOCUMENTS = "/v1/memory/banks/notes/documents"


@pytest.fixture
def slow(tmp_path):
    """(client, server, answers) that lets two answer and one wait."""
    answers = SlowEngine()
    with running(tmp_path, answers, concurrent=2, waiting=1) as (client, server):
        yield client, server, answers


def streaming(client, answers):
    """A stream that has begun, and its context manager."""
    stream = client.stream("POST", CHAT, json=ASK | {"stream": True})
    before = len(answers.streams)
    response = stream.__enter__()
    wait_for(lambda: len(answers.streams) > before)
    return response, stream


def test_what_does_not_fit_in_the_queue_is_refused(slow):
    client, server, answers = slow
    service = server._state
    with ThreadPoolExecutor(3) as pool:
        first = [pool.submit(client.post, CHAT, json=ASK) for _ in range(3)]
        wait_for(lambda: service.answering.waiting == 1)
        assert service.answering.running == 2 and len(answers.streams) == 2
        refused = client.post(CHAT, json=ASK)
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert client.post(CHAT, json=ASK | {"stream": True}).status_code == 429
        metrics = client.get("/metrics").text
        assert "msa_answers_running 2.0" in metrics and "msa_answers_waiting 1.0" in metrics
        answers.go.set()
        found = [each.result(10).json() for each in first]
    assert [each["choices"][0]["message"]["content"] for each in found] == ["first last"] * 3
    assert service.answering.running == service.answering.waiting == 0
    assert client.post(CHAT, json=ASK).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_gives_its_place_back(slow, stream):
    client, server, answers = slow
    with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
        body = b'{"messages": [{"role": "user", "content": "x"}], "stream": %s}' % (
            b"true" if stream else b"false"
        )
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        wait_for(lambda: answers.streams)
        assert server._state.answering.running == 1 and not answers.streams[0].cancelled.is_set()
    assert answers.streams[0].cancelled.wait(5)
    wait_for(lambda: server._state.answering.running == 0)


def test_one_who_waits_and_goes_away_is_forgotten(slow):
    client, server, answers = slow
    service = server._state
    begun = [streaming(client, answers) for _ in range(2)]
    with pytest.raises(httpx.ReadTimeout):
        client.post(CHAT, json=ASK, timeout=0.3)
    wait_for(lambda: service.answering.waiting == 0)
    answers.go.set()
    for response, stream in begun:
        assert "first" in response.read().decode()
        stream.__exit__(None, None, None)
    assert len(answers.streams) == 2


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


def test_a_client_that_does_not_read_holds_nothing(tmp_path):
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
        assert server._state.answering.running == 0
        assert client.get("/healthz").status_code == 200


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


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_only_what_is_declared_as_json_is_read(http, kind):
    response = http.post(CHAT, content=b"{}", headers={"Content-Type": kind})
    assert response.status_code == 415


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


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/nothing", "GET", 404),
        ("/explorer/../api.py", "GET", 404),
        ("/explorer/%2e%2e/api.py", "GET", 404),
        ("/v1/models", "DELETE", 405),
        ("/v1/memory/banks/notes/documents/x", "GET", 400),
        ("/v1/memory/banks/notes/documents?limit=0", "GET", 400),
        ("/v1/memory/banks/notes/documents?limit=100000", "GET", 400),
        ("/v1/memory/banks/notes/documents?after=x", "GET", 400),
        ("/docs", "GET", 404),
        ("/openapi.json", "GET", 404),
    ],
)
def test_errors_have_one_form(http, path, method, status):
    response = http.request(method, path)
    assert response.status_code == status
    assert response.json()["error"].keys() == {"message", "type", "code"}


def test_hosts_that_are_allowed():
    loopback = AllowedHosts.of("127.0.0.1", ("memory.example",))
    assert "memory.example:443" in loopback and "[::1]:80" in loopback and "127.0.0.9" in loopback
    assert not any(host in loopback for host in ("", "10.0.0.1", "example", "memory.example.x"))
    everywhere = AllowedHosts.of("0.0.0.0")
    assert "10.0.0.1:8000" in everywhere and "example" not in everywhere


def test_settings_that_cannot_be_are_named():
    with pytest.raises(ConfigError, match=r"--host 0\.0\.0\.0 .*--api-keys"):
        check_host("0.0.0.0", has_keys=False)
    check_host("0.0.0.0", has_keys=True)
    check_host("::1", has_keys=False)
    for name in ("body_mb", "batch", "concurrent", "timeout_s"):
        with pytest.raises(ConfigError, match=f"{name.replace('_', '-')} is"):
            ServerLimits(**{name: 0})


def test_many_at_once_are_all_answered(served):
    """More clients than places: everyone waits for a place, and gets the same answer."""
    client, server = served
    ask = ASK | {"max_tokens": 3, "memory": {"retrieval": "memory"}}
    barrier = threading.Barrier(12)

    def one(_):
        barrier.wait(10)
        return client.post(CHAT, json=ask)

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(one, range(12)))
    assert {each.status_code for each in found} == {200}
    assert len({each.json()["choices"][0]["message"]["content"] for each in found}) == 1
    assert server._state.answering.running == 0


def test_text_that_no_context_holds_is_refused_before_it_is_cut_into_tokens(tmp_path, monkeypatch):
    def encoded(*_):
        raise AssertionError("others wait for this")

    with running(tmp_path) as (client, _):
        search = client.post("/v1/memory/banks/notes/search", json={"query": "Why? " * 3000})
        assert search.status_code == 400 and "room for 2,048" in search.json()["error"]["message"]
        monkeypatch.setattr(type(MODEL.tokenizer), "encode_text", encoded)
        long = "x" * 2_000_000
        for path, body in (
            (CHAT, {"messages": [{"role": "system", "content": long}, *ASK["messages"]]}),
            ("/v1/memory/banks/notes/search", {"query": long}),
        ):
            response = client.post(path, json=body)
            assert response.status_code == 400, response.text
            assert "--context-tokens" in response.json()["error"]["message"]


def test_look_ups_are_bounded(tmp_path, monkeypatch):
    go, running_now = threading.Event(), []

    def slow(self):
        running_now.append(threading.current_thread())
        go.wait(10)
        return {}

    monkeypatch.setattr("msa_train.serving.banks.ServedBank.info", slow)
    path = "/v1/memory/banks/notes"
    with running(tmp_path, waiting=1) as (client, server), ThreadPoolExecutor(20) as pool:
        looking = server._state.looking
        begun = [pool.submit(client.get, path) for _ in range(17)]
        wait_for(lambda: looking.waiting == 1)
        assert client.get(path).status_code == 429
        go.set()
        assert [each.result(10).status_code for each in begun] == [200] * 17
    assert len(running_now) == 17 and looking.running == 0
