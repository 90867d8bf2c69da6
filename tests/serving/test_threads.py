"""Blocking work beside the event loop."""

import asyncio
import threading

import pytest

from msa_train.serving.errors import ClientGone
from msa_train.serving.threads import in_thread, iterated, join_all
from tests.serving.running import wait_for


def test_a_result_and_an_error_come_back():
    async def both():
        here = threading.current_thread()
        assert await in_thread(lambda _: threading.current_thread()) is not here
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda _: 1 / 0)

    asyncio.run(both())


def test_work_is_told_when_nobody_waits_any_more():
    told = threading.Event()

    def work(going_on):
        with pytest.raises(ClientGone):
            wait_for(going_on)
        told.set()

    async def impatient():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(in_thread(work), 0.05)

    asyncio.run(impatient())
    assert told.wait(10) and join_all(10) == 0


def test_the_end_of_work_is_told_whoever_waits():
    go, ended = threading.Event(), []

    async def impatient():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(in_thread(lambda _: go.wait(10), lambda: ended.append(1)), 0.01)
        assert not ended
        go.set()
        while not ended:
            await asyncio.sleep(0.01)
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda _: 1 / 0, lambda: ended.append(2))
        assert ended == [1, 2]

    asyncio.run(asyncio.wait_for(impatient(), 10))


def test_items_come_as_they_are_made_and_none_while_there_are_none():
    go = threading.Event()

    def items():
        yield 1
        go.wait(10)
        yield 2

    async def read():
        found = []
        async for item in iterated(items(), 0.05):
            found.append(item)
            if item is None:
                go.set()
        return found

    first, *idle, last = asyncio.run(read())
    assert (first, last) == (1, 2) and idle and set(idle) == {None}


def test_an_error_of_the_source_is_raised_after_its_items():
    def items():
        yield 1
        raise KeyError("broken")

    async def read():
        found = []
        with pytest.raises(KeyError):
            async for item in iterated(items(), 5):
                found.append(item)
        return found

    assert asyncio.run(read()) == [1]


def test_what_still_runs_is_counted():
    go = threading.Event()

    async def begin():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(in_thread(lambda _: go.wait(10)), 0.01)

    asyncio.run(begin())
    assert join_all(0.01) == 1
    go.set()
    assert join_all(10) == 0
