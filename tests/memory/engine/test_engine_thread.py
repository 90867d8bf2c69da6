"""The service: many threads ask, each hears its own; nothing hangs when something ends."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from msa_train.memory.engine.engine import MemoryEngine
from msa_train.memory.engine.engine_thread import EngineStopped, EngineThread
from msa_train.memory.engine.events import Finished, Routed
from msa_train.memory.engine.interleave import InterleaveLimits, Request
from msa_train.memory.engine.scheduler import Scheduler
from tests.memory.building import encode_in_memory
from tests.memory.engine.writing import writes
from tests.memory.tiny import tiny_documents, tiny_model, tiny_tokenizer

QUESTIONS = ["What is the code of the harbour?", "Who sleeps standing?", "?", "東京"]
LIMITS = InterleaveLimits(rounds=2, retrieval_characters=30, answer_tokens=9)
ENDLESS = InterleaveLimits(answer_tokens=100_000)


@pytest.fixture(scope="module")
def view():
    return encode_in_memory(tiny_model(), tiny_tokenizer(), tiny_documents())


@pytest.fixture
def service():
    service = EngineThread(Scheduler(tiny_model(), tiny_tokenizer(), 4, 2000), 60)
    yield service
    service.stop()
    assert not service._thread.is_alive()


def endless(view, monkeypatch):
    """A request that writes for as long as it may."""
    writes(monkeypatch, lambda *_: 40)
    return Request("?", view, "memory", ENDLESS)


def test_many_threads_ask_and_each_hears_its_own(view, service):
    engine = MemoryEngine(tiny_model(), tiny_tokenizer(), view)
    asked = [(q, mode) for q in QUESTIONS for mode in ("generate", "router", "memory")]
    expected = [engine.ask([q], mode, LIMITS)[0].text for q, mode in asked]

    def ask(each):
        *_, last = service.submit(Request(each[0], view, each[1], LIMITS))
        return last.answer.text

    with ThreadPoolExecutor(len(asked)) as pool:
        assert list(pool.map(ask, asked)) == expected


def test_a_cancelled_stream_ends(view, service, monkeypatch):
    stream = service.submit(endless(view, monkeypatch))
    assert isinstance(next(iter(stream)), Routed)
    assert service._scheduler.busy
    reader = threading.Thread(target=lambda: list(stream))
    reader.start()
    stream.cancel()
    reader.join(30)
    assert not reader.is_alive()  # its events have an end
    deadline = time.monotonic() + 30
    while service._scheduler.busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stream.cancel()  # nothing happens


def test_a_wait_for_an_event_has_an_end(view, monkeypatch):
    service = EngineThread(Scheduler(tiny_model(), tiny_tokenizer(), 4, 2000), 0.05)
    hold = threading.Event()
    monkeypatch.setattr(type(service._scheduler), "step", lambda self: hold.wait(30) and [])
    stream = service.submit(Request("?", view))
    with pytest.raises(TimeoutError, match=r"within 0.05 s"):
        next(iter(stream))
    stream.cancel()
    hold.set()
    monkeypatch.undo()
    service.stop()
    assert not service._thread.is_alive()


def test_a_request_that_cannot_be_read_fails_alone(view, service):
    bad = service.submit(Request("half \ud800", view, "memory", LIMITS))
    good = service.submit(Request("?", view, "memory", LIMITS))
    with pytest.raises(ValueError, match="surrogate"):
        next(iter(bad))
    assert isinstance(list(good)[-1], Finished)


def test_all_fail_with_the_reason_when_the_scheduler_does(view, monkeypatch):
    service = EngineThread(Scheduler(tiny_model(), tiny_tokenizer(), 1, 2000), 60)
    streams = [service.submit(endless(view, monkeypatch)) for _ in range(3)]
    assert isinstance(next(iter(streams[0])), Routed)
    monkeypatch.setattr(type(tiny_model()), "decode", lambda *_: 1 / 0)
    for stream in streams:
        with pytest.raises(ZeroDivisionError):
            list(stream)
    service._thread.join(30)
    with pytest.raises(EngineStopped, match="division by zero"):
        service.submit(Request("?", view))
    service.stop()


def test_stopping_lets_answers_finish_within_the_time_given(view):
    service = EngineThread(Scheduler(tiny_model(), tiny_tokenizer(), 4, 2000), 60)
    streams = [service.submit(Request(q, view, "memory", LIMITS)) for q in QUESTIONS]
    service.stop(drain_s=60)
    assert all(isinstance(list(stream)[-1], Finished) for stream in streams)
    with pytest.raises(EngineStopped, match="stopped"):
        service.submit(Request("?", view))


def test_stopping_fails_what_does_not_finish(view, monkeypatch):
    service = EngineThread(Scheduler(tiny_model(), tiny_tokenizer(), 1, 100_000), 60)
    streams = [
        service.submit(endless(view, monkeypatch)) for _ in range(2)
    ]  # one writes, one waits
    began = time.monotonic()
    service.stop(drain_s=0.3)
    assert time.monotonic() - began < 20
    for stream in streams:
        with pytest.raises(EngineStopped):
            list(stream)


def test_a_snapshot_is_let_go_of_once_its_answers_are_given(view, service):
    asked = replace(view)  # a snapshot that nobody else has
    gone = weakref.ref(asked)
    assert isinstance(list(service.submit(Request("?", asked, "memory", LIMITS)))[-1], Finished)
    del asked
    deadline = time.monotonic() + 10
    while gone() is not None:
        assert time.monotonic() < deadline, "the idle service keeps it"
        gc.collect()
        time.sleep(0.05)


def test_streams_cancelled_after_the_end_leave_nothing_behind(view):
    service = EngineThread(Scheduler(tiny_model(), tiny_tokenizer(), 1, 2000), 60)
    stream = service.submit(Request("?", view, "memory", LIMITS))
    service.stop(drain_s=60)
    for _ in range(3):
        stream.cancel()
    assert not service._inbox
