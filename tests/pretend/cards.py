"""What tests/pretend/cuda.py pretends beside tensors: two cards, with streams, events and graphs.

Each thread has a current card, at first cuda:0, and a current stream of each card. Work is done at
once, but stands in a stream's order, and is known to come only after what its stream, or the host,
has waited for. What is read, or written, before it may be is an error (`OrderError`), and so is a
launch on a card that is not that of its tensors (`WrongCardError`), and a wait in a captured graph.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten

CARDS = 2
Note = Callable[..., None]  # note(kind, what, card=, stream=)


class WrongCardError(RuntimeError):
    """A kernel would run on one card with the memory of another."""


class OrderError(RuntimeError):
    """Nothing says that memory is read, or written again, after it was written, or read."""


class Cards:
    """The state of all cards while they are pretended."""

    def __init__(self, note: Note):
        self.note = note
        self.default = [Stream(self, card) for card in range(CARDS)]
        self.host: dict[Stream, int] = {}  # work that the host has waited for
        self.arriving: dict[int, tuple[Stream, int, Tensor]] = {}  # copies to the host under way
        self._written: dict[int, tuple[Stream, int]] = {}
        self._read: dict[int, dict[Stream, int]] = {}
        self.thread = _Thread()

    def index(self, device=None) -> int:
        """Of the card that torch would take: "cuda" is the current one."""
        if isinstance(device, int) and device >= 0:
            return device
        given = None if device in (None, -1) else torch.device(device).index
        return self.thread.card if given is None else given

    def stream(self, device=None) -> Stream:
        card = self.index(device)
        return self.thread.streams.get(card, self.default[card])

    @contextlib.contextmanager
    def entered(self, card: int) -> Iterator[None]:
        before, self.thread.card = self.thread.card, card
        try:
            yield
        finally:
            self.thread.card = before

    @contextlib.contextmanager
    def in_stream(self, stream: Stream | None) -> Iterator[None]:
        """As torch: the stream's card becomes the current one, too."""
        if stream is None:
            yield
            return
        before = self.stream(stream.card)
        with self.entered(stream.card):
            self.thread.streams[stream.card] = stream
            try:
                yield
            finally:
                self.thread.streams[stream.card] = before

    def work(
        self,
        stream: Stream,
        what: Callable[[], str],
        reads: Iterable[Tensor] = (),
        writes: Iterable[Tensor] = (),
        fresh: Iterable[Tensor] = (),
    ) -> int:
        """The next work of a stream; fresh: memory that nobody had before."""
        reads, writes, fresh = (_memories(each) for each in (reads, writes, fresh))
        for memory in fresh:
            self._written.pop(memory, None)
            self._read.pop(memory, None)
        if self.thread.capturing is not None:  # it is done when the graph is replayed
            return stream.count
        number = stream.next()
        for memory in reads | writes:
            self._after(stream, what, self._written.get(memory), "writes")
        for memory in writes:
            for reader in self._read.get(memory, {}).items():
                self._after(stream, what, reader, "reads")
        for memory in reads:
            self._read.setdefault(memory, {})[stream] = number
        for memory in writes | fresh:
            self._written[memory] = stream, number
            self._read.pop(memory, None)
        return number

    def _after(
        self, stream: Stream, what: Callable[[], str], other: tuple | None, does: str
    ) -> None:
        if other is not None and not stream.comes_after(*other):
            raise OrderError(f"{what()} in {stream}: not after {other[0]} {does} the same memory")

    def waited(self, work: dict[Stream, int], what: str, card: int, stream=None) -> None:
        """The host has waited for some work."""
        if self.thread.capturing is not None:
            raise OrderError(f"{what}: the host waits while a graph is captured")
        _merge(self.host, work)
        self.note("sync", what, card=card, stream=stream)

    def arrives(self, x: Tensor, stream: Stream, number: int) -> None:
        """A tensor of the host is being written by the device."""
        for memory in _memories([x]):
            self.arriving[memory] = stream, number, x

    def look(self, tensors: Iterable[Tensor], what: Callable[[], str]) -> None:
        """The host reads, or writes, tensors of its own."""
        for memory in _memories(tensors) & self.arriving.keys():
            stream, number, _ = self.arriving[memory]
            if self.host.get(stream, 0) < number:
                raise OrderError(f"{what()}: the copy from {stream} has not been waited for")
            del self.arriving[memory]

    def synchronize(self, device=None) -> None:
        card = self.index(device)
        known = {self.default[card], *self.host, *self.thread.streams.values()}
        known |= {stream for stream, _ in self._written.values()}
        done = {stream: stream.count for stream in known if stream.card == card}
        self.waited(done, "waiting for the device", card)


class _Thread(threading.local):
    """What torch keeps for each thread."""

    def __init__(self):
        self.card, self.capturing = 0, None
        self.streams: dict[int, Stream] = {}


def _memories(tensors: Iterable[Tensor]) -> set[int]:
    """Where tensors lie, of those that have any number."""
    return {x.untyped_storage().data_ptr() for x in tensors} - {0}


def _merge(known: dict[Stream, int], more: dict[Stream, int]) -> None:
    for stream, number in more.items():
        known[stream] = max(number, known.get(stream, 0))


class Stream:
    """Of a card; number: 0 is the default one of any card."""

    _numbers = itertools.count()

    def __init__(self, cards: Cards, card: int):
        self.cards, self.card, self.cuda_stream = cards, card, next(Stream._numbers)
        self.count, self.after = 0, {}
        self.device = torch.device("cuda", card)

    def __repr__(self) -> str:
        return f"stream {self.cuda_stream} of {self.device}"

    def next(self) -> int:
        _merge(self.after, self.cards.host)
        self.count += 1
        return self.count

    def comes_after(self, other: Stream, number: int) -> bool:
        return other is self or self.after.get(other, 0) >= number

    def reached(self) -> dict[Stream, int]:
        return {**self.after, self: self.count}

    def synchronize(self) -> None:
        self.cards.waited(self.reached(), "waiting for a stream", self.card, self)

    def query(self) -> bool:
        return True

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event(self.cards)
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        _merge(self.after, event.work)
        self.cards.note("wait", "an event", card=self.card, stream=self)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())


class Event:
    """What a stream had been given when the event was recorded."""

    def __init__(self, cards: Cards):
        self.cards, self.work, self.card, self.stream = cards, {}, None, None

    def record(self, stream: Stream | None = None) -> None:
        self.stream = stream or self.cards.stream()
        if self.card not in (None, self.stream.card):
            raise WrongCardError(f"an event of cuda:{self.card} is recorded in {self.stream}")
        self.card, self.work = self.stream.card, self.stream.reached()
        self.cards.note("record", "an event", card=self.card, stream=self.stream)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or self.cards.stream()).wait_event(self)

    def synchronize(self) -> None:
        if self.card is not None:
            self.cards.waited(self.work, "waiting for an event", self.card, self.stream)

    def query(self) -> bool:
        return True

    def elapsed_time(self, _other: Event) -> float:
        return 0.0


class Graph:
    """Operations that were captured, done again with the memory that they had."""

    def __init__(self, cards: Cards):
        self.cards, self.card, self.pool = cards, None, None
        self._steps: list[tuple] = []

    def add(self, compute: Callable, args: tuple, kwargs: dict, results) -> None:
        self._steps.append((compute, args, kwargs, tree_flatten(results)[0]))

    def replay(self) -> None:
        stream = self.cards.stream()
        if stream.card != self.card:
            raise WrongCardError(f"a graph of cuda:{self.card} is replayed in {stream}")
        self.cards.note("launch", "a graph", card=stream.card, stream=stream)
        held = [x for each in self._steps for x in each[3] if isinstance(x, Tensor)]
        self.cards.work(stream, lambda: "a graph", writes=held)
        with _disable_current_modes():
            for compute, args, kwargs, results in self._steps:
                found = tree_flatten(compute(*args, **kwargs))[0]
                for old, new in zip(results, found, strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class _Capture:
    """In the place of torch.cuda.graph."""

    def __init__(self, graph: Graph, pool=None, stream=None, capture_error_mode="global"):
        self._graph, self._pool, self._stream = graph, pool, stream or Stream(graph.cards, 0)

    def __enter__(self) -> None:
        cards = self._graph.cards
        cards.synchronize()
        self._in = cards.in_stream(self._stream)
        self._in.__enter__()
        self._graph.card, cards.thread.capturing = self._stream.card, self._graph
        cards.note("capture", "a graph", card=self._stream.card, stream=self._stream)

    def __exit__(self, *error) -> None:
        self._graph.cards.thread.capturing = None
        self._in.__exit__(*error)


def patches(cards: Cards) -> list:
    """Of torch.cuda, where it asks the driver."""

    def asked(value):
        def answer(device=None):
            card = cards.index(device)
            cards.note("ask", "the driver", card=card)
            return value

        return answer

    def set_device(device):
        cards.thread.card = cards.index(device)

    properties = mock.Mock(
        total_memory=80 << 30, major=9, minor=0, multi_processor_count=132,
        shared_memory_per_block_optin=227 << 10, shared_memory_per_multiprocessor=228 << 10,
    )  # fmt: skip
    cuda = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: CARDS,
        "current_device": lambda: cards.thread.card,
        "set_device": set_device,
        "get_device_capability": asked((9, 0)),
        "get_device_name": asked("pretended"),
        "get_device_properties": asked(properties),
        "mem_get_info": asked((70 << 30, 80 << 30)),
        "memory_allocated": asked(0),
        "max_memory_allocated": asked(0),
        "memory_reserved": asked(0),
        "empty_cache": lambda: asked(None)(),
        "_lazy_init": lambda: None,
        "Stream": lambda device=None, priority=0: Stream(cards, cards.index(device)),
        "Event": lambda *_, **__: Event(cards),
        "CUDAGraph": lambda: Graph(cards),
        "graph": _Capture,
        "graph_pool_handle": lambda: (cards.thread.card, 1),
        "current_stream": cards.stream,
        "default_stream": lambda device=None: cards.default[cards.index(device)],
        "is_current_stream_capturing": lambda: cards.thread.capturing is not None,
        "stream": cards.in_stream,
        "device": lambda device: cards.entered(cards.index(device)),
        "device_of": lambda x: cards.entered(x.card if x.is_cuda else cards.thread.card),
        "synchronize": cards.synchronize,
    }  # fmt: skip
    return [mock.patch.object(torch.cuda, name, value) for name, value in cuda.items()]
