"""A chat response in OpenAI's form: one object, or chunks that also carry the memory's events."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.protocol import ANSWER
from msa_train.memory.engine.events import (
    Answer,
    Event,
    Evidence,
    Finished,
    RoundReport,
    Routed,
    Selection,
    TextPiece,
)

_PHRASE = ANSWER.rstrip()  # with which the model begins every answer; not shown


@dataclass
class AnswerText:
    """The answer's text, piece by piece, without the phrase before it and white space around it."""

    _held: str = ""
    _may_be_phrase: bool = True
    _begun: bool = False

    def more(self, piece: str) -> str:
        """What can be shown now; white space is held back until text follows it."""
        self._held += piece
        if not self._begun:
            self._held = self._held.lstrip()
        if self._may_be_phrase:
            if len(self._held) < len(_PHRASE) and _PHRASE.startswith(self._held):
                return ""
            self._may_be_phrase = False
            self._held = self._held.removeprefix(_PHRASE).lstrip()
        self._begun = self._begun or bool(self._held)
        shown = self._held.rstrip()
        self._held = self._held[len(shown) :]
        return shown

    def rest(self) -> str:
        """At the end: a beginning of the phrase, held back, that did not become the phrase."""
        return self._held.strip()


@dataclass
class ChatResponse:
    """Takes an answer's events as they come. content: its text so far."""

    model: str
    bank: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    content: str = ""
    answer: Answer | None = None
    _text: AnswerText = field(default_factory=AnswerText)

    def take(self, event: Event) -> list[dict[str, Any]]:
        """What a stream shows of an event, for each chunk: `content`, or the field `memory`."""
        if isinstance(event, TextPiece):
            return self._piece(event)
        if isinstance(event, Routed):
            chosen = chosen_json(event.chosen)
            return [{"memory": {"event": "routed", "round": event.round, **chosen}}]
        if isinstance(event, Evidence):
            found = [{"number": d.number, "id": d.id, "title": d.title} for d in event.documents]
            return [{"memory": {"event": "evidence", "documents": found}}]
        if isinstance(event, Finished):
            return self._finish(event.answer)
        return []

    def _piece(self, event: TextPiece) -> list[dict[str, Any]]:
        if event.stage == "ids":
            return [{"memory": {"event": "writes", "text": event.text}}]
        return self._show(self._text.more(event.text))

    def _finish(self, answer: Answer) -> list[dict[str, Any]]:
        shown = self._show(self._text.rest())
        self.answer = answer
        event = {"event": "finished", **self._end}
        rounds = [round_json(each) for each in answer.rounds]
        return [*shown, {"memory": {**event, "rounds": rounds}}]

    def _show(self, text: str) -> list[dict[str, Any]]:
        self.content += text
        return [{"content": text}] if text else []

    @property
    def finish_reason(self) -> str:
        assert self.answer is not None
        return "length" if self.answer.cut else "stop"

    @property
    def _end(self) -> dict[str, Any]:
        """How the answer ended. OpenAI's reasons have no word for an answer without a document."""
        assert self.answer is not None
        return {
            "finish_reason": "no_documents" if self.answer.unasked else self.finish_reason,
            "retrieval": self.answer.mode,
            "forced": list(self.answer.forced),
            "seconds": self.answer.seconds,
        }

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of the first prompt and of the answer; what the engine reads and writes between
        them is not counted."""
        assert self.answer is not None
        prompt, written = self.answer.prompt_tokens, self.answer.answer_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
        }

    def completion(self) -> dict[str, Any]:
        """The whole answer as one object."""
        assert self.answer is not None
        message = {"role": "assistant", "content": self.content, "refusal": None}
        return {
            **self._head("chat.completion"),
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "finish_reason": self.finish_reason,
                    "logprobs": None,
                }
            ],
            "usage": self.usage,
            "memory": {
                "bank": self.bank,
                "rounds": [round_json(each) for each in self.answer.rounds],
                **self._end,
            },
        }

    def summary(self) -> dict[str, Any]:
        """Document numbers alone: what the first round voted for, and what was read, in order."""
        assert self.answer is not None
        rounds = self.answer.rounds
        return {
            "bank": self.bank,
            "voted": [number for number, _ in rounds[0].chosen.voted] if rounds else [],
            "evidence": [number for each in rounds for number in each.evidence],
        }

    def chunk(
        self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **more}

    def usage_chunk(self) -> dict[str, Any]:
        head = self._head("chat.completion.chunk")
        return {**head, "choices": [], "usage": self.usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def chosen_json(chosen: Selection) -> dict[str, Any]:
    """`fused` is there only where BM25 chose too."""
    fused = chosen.fused
    return {
        "layers": {
            str(layer): [each._asdict() for each in ranking]
            for layer, ranking in chosen.layers.items()
        },
        "voted": [{"number": number, "score": score} for number, score in chosen.voted],
        **({} if fused is None else {"fused": [each._asdict() for each in fused]}),
    }


def round_json(report: RoundReport) -> dict[str, Any]:
    return {
        **chosen_json(report.chosen),
        "written": report.written,
        "evidence": list(report.evidence),
    }


def sse(value: dict[str, Any] | str) -> bytes:
    """An event of a text/event-stream."""
    data = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
    return f"data: {data}\n\n".encode()
