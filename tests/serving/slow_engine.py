"""Answers that come when a test lets them."""

import threading

from msa_train.memory.engine.events import Answer, Finished, TextPiece


class SlowEngine:
    """An EngineThread whose answers each write a word, wait for `go`, and end."""

    def __init__(self):
        self.go = threading.Event()
        self.streams: list[SlowStream] = []

    def submit(self, request):
        self.streams.append(SlowStream(request, self.go))
        return self.streams[-1]

    def stop(self):
        self.go.set()


class EndlessEngine(SlowEngine):
    """Answers that write as fast as they are read, until they are cancelled."""

    def submit(self, request):
        self.streams.append(EndlessStream(request, self.go))
        return self.streams[-1]


class SlowStream:
    def __init__(self, request, go):
        self.request, self._go = request, go
        self.cancelled = threading.Event()

    def __iter__(self):
        yield TextPiece("answer", "first")
        while not self._go.wait(0.01):
            if self.cancelled.is_set():
                return
        yield TextPiece("answer", " last")
        yield Finished(Answer(self.request.question, "memory", "", "first last", (), (), 0.1))

    def cancel(self):
        self.cancelled.set()


class EndlessStream(SlowStream):
    def __iter__(self):
        while not self.cancelled.wait(0.001):
            yield TextPiece("answer", "x" * 50_000)
