"""What a corpus is made of: documents, questions, and the samples a model is trained on.

Everything here is plain data with a JSON form. The rules that build text out of it are in
protocol.py; positions, tokens and tensors come later.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Any, Literal, get_args

from data_pipeline.errors import DataError

Kind = Literal["retrieve", "answer_text", "answer_memory", "text", "answer_chat"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ASKED_KINDS = KINDS[:3]  # those that ask a question


class Role(IntEnum):
    """Class of a token of the active context, in the interchange values of SPEC section 1.

    FRAME is ours: of class 0 as published, but the same around every question, so that a mean over
    tokens leaves it out (SPEC section 8).
    """

    TEMPLATE = -2
    RESPONSE = -1  # the response, and anything else active
    QUERY = 0  # routing query tokens
    FRAME = 1  # the fixed words around a question

    def routes(self, frame: bool) -> bool:
        """Whether it is a routing query token; frame: whether those around a question are."""
        return self is Role.QUERY or (frame and self is Role.FRAME)


@dataclass(frozen=True)
class Piece:
    """A run of text of the active context (or of a document) that has one class.

    text: the text itself, or the ONE control token when `control` is set.
    label: the model writes this text; otherwise it is context and takes no LM loss.
    """

    text: str
    role: Role = Role.RESPONSE
    control: bool = False
    label: bool = False

    def to_json(self) -> list[Any]:
        return [self.text, int(self.role), int(self.control), int(self.label)]

    @classmethod
    def from_json(cls, data: list[Any]) -> Piece:
        text, role, control, label = data
        return cls(text, Role(role), bool(control), bool(label))


@dataclass(frozen=True)
class Document:
    """A document of a bank. `number` is global and part of the encoded text (SPEC section 4)."""

    number: int
    text: str
    id: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        if self.number < 0:
            raise DataError(f"document {self.id!r} has number {self.number}: give 0 or more")

    def to_json(self) -> dict[str, Any]:
        return _without_empty(vars(self))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Document:
        return cls(**data)


@dataclass(frozen=True)
class Query:
    """A question against a bank.

    answers: alternative full answers, each of them right; the first is the one a model is taught.
        Empty: the question is answered by its documents (retrieval alone).
    values: the parts an answer must ALL contain, when the answer is a list (multi-value and
        multi-query needles), in the order of the first answer. Empty: the answer is not a list.
    positives: numbers of the documents that hold the answer, ascending.
    steps: the same numbers in the order in which a chain of retrievals finds them (empty: at once).
    masked: numbers of documents that may hold the answer too: neither positive nor negative.
    hard: numbers of the documents that were chosen because they look right, the most alike first.
    """

    question: str
    answers: tuple[str, ...]
    positives: tuple[int, ...]
    values: tuple[str, ...] = ()
    id: str = ""
    steps: tuple[tuple[int, ...], ...] = ()
    masked: tuple[int, ...] = ()
    hard: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        found = sorted(number for step in self.steps for number in step)
        if self.steps and found != list(self.positives):
            raise DataError(
                f"the steps of {self.question!r} find {found}, its positives are {self.positives}"
            )
        if list(self.positives) != sorted(set(self.positives)):
            raise DataError(
                f"the positives of {self.question!r} are {self.positives}: "
                "give document numbers in ascending order, each once"
            )

    def to_json(self) -> dict[str, Any]:
        return _without_empty(vars(self))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Query:
        return cls(
            question=data["question"],
            answers=tuple(data["answers"]),
            positives=tuple(data.get("positives", ())),
            values=tuple(data.get("values", ())),
            id=data.get("id", ""),
            steps=tuple(tuple(step) for step in data.get("steps", ())),
            masked=tuple(data.get("masked", ())),
            hard=tuple(data.get("hard", ())),
        )


@dataclass(frozen=True)
class Context:
    """One active context: a question and what follows the response head (SPEC section 4).

    kind: retrieve (write the ids), answer_text (answer with texts appended), answer_memory (answer
        from pooled memory alone), text (plain text without a question or a memory, to keep what a
        backbone knows), answer_chat (answer_text in the chat form).
    response: the pieces after the response head; protocol.context_pieces gives all of them.
    positives: documents this step must find; empty means no router loss.
    masked: documents that are neither positive nor negative in the router loss.
    rounds: retrieval rounds that the response already holds. From the second round on the class-0
        rule is another one.
    """

    question: str
    kind: Kind
    response: tuple[Piece, ...]
    positives: tuple[int, ...] = ()
    masked: tuple[int, ...] = ()
    rounds: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"a context is of kind {self.kind!r}: give one of {', '.join(KINDS)}")
        if both := set(self.positives) & set(self.masked):
            raise DataError(
                f"documents {sorted(both)} of {self.question!r} are positive and masked"
            )

    def to_json(self) -> dict[str, Any]:
        response = [piece.to_json() for piece in self.response]
        return _without_empty({**vars(self), "response": response})

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Context:
        return cls(
            question=data["question"],
            kind=data["kind"],
            response=tuple(Piece.from_json(piece) for piece in data["response"]),
            positives=tuple(data.get("positives", ())),
            masked=tuple(data.get("masked", ())),
            rounds=data.get("rounds", 0),
        )


@dataclass(frozen=True)
class Sample:
    """One bank with the contexts that it serves: the unit of a shard and of a micro-batch."""

    documents: tuple[Document, ...]
    contexts: tuple[Context, ...]
    source: str = ""

    def __post_init__(self) -> None:
        numbers = [document.number for document in self.documents]
        if any(a >= b for a, b in pairwise(numbers)):
            raise DataError(f"documents of a sample of {self.source!r} are not in ascending number")
        known = set(numbers)
        for context in self.contexts:
            if strangers := {*context.positives, *context.masked} - known:
                raise DataError(
                    f"the question {context.question!r} names documents {sorted(strangers)} "
                    "that are not in its bank"
                )

    def to_json(self) -> dict[str, Any]:
        return {
            "documents": [document.to_json() for document in self.documents],
            "contexts": [context.to_json() for context in self.contexts],
            "source": self.source,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Sample:
        return cls(
            documents=tuple(map(Document.from_json, data["documents"])),
            contexts=tuple(map(Context.from_json, data["contexts"])),
            source=data.get("source", ""),
        )

    def to_bytes(self) -> bytes:
        """Compact UTF-8 JSON; equal samples give equal bytes."""
        return json.dumps(self.to_json(), ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Sample:
        """Raises DataError when the bytes are not a sample."""
        try:
            return cls.from_json(json.loads(data))
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"not a sample in JSON: {error!r}") from error


def _without_empty(data: dict[str, Any]) -> dict[str, Any]:
    """Defaults are left out of the JSON: most fields of most samples are empty."""
    return {key: value for key, value in data.items() if value or key in _ALWAYS}


_ALWAYS = ("number", "text", "question", "answers", "response")
