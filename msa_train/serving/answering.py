"""Answers from today's engine, in the form that the scheduler's service will have."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from msa_train.memory.answers import Event
from msa_train.memory.engine import MemoryEngine
from msa_train.memory.interleave import Limits, Mode
from msa_train.memory.search import MemoryView


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Request:
    question: str
    view: MemoryView
    mode: Mode = "generate"
    limits: Limits = field(default_factory=Limits)
    sampling: Sampling = field(default_factory=Sampling)
    instructions: str = ""
    earlier: tuple[tuple[str, str], ...] = ()
    stop: tuple[str, ...] = ()


class Stream:
    def __init__(self, events: Iterator[Event]):
        self._events, self._cancelled = events, threading.Event()

    def __iter__(self) -> Iterator[Event]:
        for event in self._events:
            if self._cancelled.is_set():
                return
            yield event

    def cancel(self) -> None:
        self._cancelled.set()


class AnswerService:
    def __init__(self, model, tokenizer):
        self._model, self._tokenizer = model, tokenizer

    def submit(self, request: Request) -> Stream:
        engine = MemoryEngine(self._model, self._tokenizer, request.view)
        asked = "\n".join([request.instructions, request.question]).strip()
        return Stream(engine.stream(asked, request.mode, request.limits))

    def stop(self) -> None:
        pass
