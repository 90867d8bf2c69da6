"""How much runs at once and how much waits for it; and what leaves gives its place back."""

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from msa_train.serving.errors import ApiError, ClientGone
from msa_train.serving.state import Admission
from tests.serving.running import MODEL, running, wait_for
from tests.serving.slow_engine import SlowEngine

ASK = {"messages": [{"role": "user", "content": "x"}]}
CHAT = "/v1/chat/completions"


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
        wait_for(lambda: len(answers.streams) == 2)  # each in a thread, which takes its time
        assert service.answering.running == 2
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


def test_many_messages_cost_what_their_turns_cost(tmp_path, monkeypatch):
    """100,000 of one character kept every answer waiting while they were cut into tokens."""
    turns = [{"role": ("user", "assistant")[n % 2], "content": "a"} for n in range(2000)]
    with running(tmp_path) as (client, _):
        ask = {"max_tokens": 1, "memory": {"retrieval": "memory"}}
        fits = client.post(CHAT, json=ask | {"messages": [*turns[:60], *ASK["messages"]]})
        assert fits.status_code == 200, fits.text
        monkeypatch.setattr(type(MODEL.tokenizer), "encode_text", lambda *_: 1 / 0)
        refused = client.post(CHAT, json={"messages": [*turns, *ASK["messages"]]})
        assert refused.status_code == 400 and "in 2,001 messages" in refused.text


@pytest.mark.parametrize("where", ["system", "assistant", "user"])
def test_what_is_too_long_is_found_beside_the_engines_thread(tmp_path, monkeypatch, where):
    tokenizer, engine = type(MODEL.tokenizer), []
    encode_text = tokenizer.encode_text

    def recorded(self, text):
        if threading.current_thread().name == "answers":
            engine.append(len(text))
        return encode_text(self, text)

    monkeypatch.setattr(tokenizer, "encode_text", recorded)
    with running(tmp_path) as (client, _):
        long = [{"role": where, "content": "Why? " * 3000}]
        refused = client.post(CHAT, json={"messages": long + (ASK["messages"] * (where != "user"))})
    assert refused.status_code == 400 and "more than 2,048 tokens" in refused.text
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert max(engine, default=0) < 1000


def test_abandoned_work_keeps_its_place_until_it_ends():
    go, told = threading.Event(), threading.Event()

    def work(going_on):
        with pytest.raises(ClientGone):
            wait_for(going_on)
        told.set()
        go.wait(10)

    async def leave():
        places = Admission("changes", 1, 0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(places.in_thread(work), 0.05)
        assert told.wait(5) and places.running == 1
        with pytest.raises(ApiError, match="1 changes run"):
            await places.enter()
        go.set()
        while places.running:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(leave(), 10))


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
