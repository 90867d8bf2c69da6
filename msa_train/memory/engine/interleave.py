"""Memory Interleave: the rounds between a model and its memory (SPEC section 4).

Strings in, decisions out: no tokens, no tensors. sequence.py carries the decisions out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, get_args

from data_pipeline.errors import check_least
from data_pipeline.protocol import (
    END_OF_RETRIEVE,
    IM_END,
    REF_END,
    RETRIEVAL_LIMIT,
    AnswerForm,
    Round,
    Turn,
    answer_request_pieces,
    chat_pieces,
    end_of_retrieve_pieces,
    evidence_text,
    memory_answer_pieces,
    parse_answer,
    parse_ids,
    rounds_pieces,
    written_ids,
)
from data_pipeline.schema import Piece
from msa_train.errors import ConfigError
from msa_train.memory.engine.sampling import Sampling
from msa_train.memory.search.view import MemoryView
from msa_train.model.config import ModelConfig

Mode = Literal["generate", "router", "memory"]
WritingStage = Literal["ids", "answer"]
_RESERVED_TOKENS = 512  # evidence leaves room for an answer of this length, if one may be as long


def usual_mode(config: ModelConfig) -> Mode:
    """Who names the documents unless somebody says: the model, as published; the routers' vote
    where no layer reads from memory, for such a model was never taught to write ids."""
    return "generate" if config.reading_layers else "router"


@dataclass(frozen=True)
class InterleaveLimits:
    """Where the engine ends a stage by force.

    rounds: retrieval rounds. retrieval_characters: of the ids written in all rounds. answer_tokens:
    of the answer. documents: how many voted ones mode "router" reads. evidence_tokens: of the texts
    appended in all rounds; a document that would exceed it is left out.
    """

    rounds: int = 6
    retrieval_characters: int = RETRIEVAL_LIMIT
    answer_tokens: int = 128
    documents: int = 4
    evidence_tokens: int = 8192

    def __post_init__(self) -> None:
        check_least(1, self, "", *vars(self), error=ConfigError)


@dataclass(frozen=True)
class Request:
    """A question to a view of a memory, which stays the same in all its rounds.

    mode generate: the model writes ids and reads the texts, round by round, until it asks for the
    answer (the paper). router: one round with the documents that the router layers vote for (with
    BM25, where the view has words) in place of written ids. memory: the answer comes from pooled
    memory alone. instructions stand before the question, earlier turns (role, text) before the
    prompt (data_pipeline/protocol.py). stop: strings before which the answer ends. ranking: in mode
    router, document numbers, best first, that take the place of the vote (an evaluation's). Raises
    ConfigError.
    """

    question: str
    view: MemoryView
    mode: Mode = "generate"
    limits: InterleaveLimits = field(default_factory=InterleaveLimits)
    sampling: Sampling = field(default_factory=Sampling)
    instructions: str = ""
    earlier: tuple[Turn, ...] = ()
    stop: tuple[str, ...] = ()
    ranking: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(
                f"retrieval is {self.mode!r}: give one of {', '.join(get_args(Mode))}"
            )
        if self.ranking is not None and self.mode != "router":
            raise ConfigError(
                f"a ranking is given and retrieval is {self.mode!r}: only router reads a ranking"
            )
        if not all(self.stop):
            raise ConfigError("stop: an empty string ends every answer, give at least a character")


class Next(Enum):
    """What has to be done after a token."""

    WRITE = "one more token"
    APPEND = "feed `appended` to the context as it stands: no new routing"
    PREFILL = "prefill `context` anew, with a new selection"
    STOP = "nothing: the answer is complete"


@dataclass
class Interleave:
    """The state of one question on its way to an answer.

    count: the number of tokens of a text. room: how many tokens the context can still take (None:
    not limited). answers: the form in which the model is asked for the answer from texts.
    """

    request: Request
    answers: AnswerForm = "protocol"
    count: Callable[[str], int] = len
    room: int | None = None
    rounds: list[Round] = field(default_factory=list)
    forced: list[str] = field(default_factory=list)  # why the engine ended a stage, if it did
    stage: WritingStage = "ids"
    answer_text: str = ""  # as the model wrote it
    appended: list[Piece] = field(default_factory=list)
    _evidence_tokens: int = 0

    def __post_init__(self) -> None:
        if self.request.mode == "memory":
            self.stage = "answer"

    @property
    def awaits_vote(self) -> bool:
        """Whether the next prefill is for its routing alone; `choose` takes the result."""
        return self.request.mode == "router" and not self.rounds

    @property
    def context(self) -> list[Piece]:
        """All pieces to prefill now."""
        asked = self.request
        if self._chats:
            read = [document for past in self.rounds for document in past.evidence]
            return chat_pieces(asked.question, read, asked.instructions, asked.earlier)
        pieces = rounds_pieces(asked.question, self.rounds, asked.instructions, asked.earlier)
        return pieces if self.stage == "ids" else [*pieces, *memory_answer_pieces(asked.question)]

    @property
    def _chats(self) -> bool:
        """Whether an answer from texts is due, in the chat form."""
        asked = self.answers == "chat" and self.stage == "answer"
        return asked and self.request.mode != "memory"

    @property
    def answer(self) -> str:
        return parse_answer(self.answer_text)

    def choose(self, ranking: list[int]) -> Next:
        """Mode router: the chosen document numbers, best first, take the place of written ids."""
        numbers = ranking[: self.request.limits.documents]
        self._close_round(written_ids(numbers), numbers)
        self.stage = "answer"
        return Next.PREFILL

    def advance(self, text: str, tokens: int, control: str | None = None) -> Next:
        """To be called after each token of the model.

        text: all that it wrote in this stage or round so far, in `tokens` tokens. control: the
        control token that it wrote just now, not part of the text.
        """
        if self.stage == "ids":
            return self._advance_ids(text, control)
        return self._advance_answer(text, tokens, control)

    def _advance_ids(self, text: str, control: str | None) -> Next:
        if END_OF_RETRIEVE in text:
            return self._request_answer()
        if control not in (None, REF_END):
            return self._request_answer(f"{control} instead of ids")
        earlier = sum(len(past.written) for past in self.rounds)
        if earlier + len(text) > self.request.limits.retrieval_characters:
            return self._request_answer(
                f"more than {self.request.limits.retrieval_characters} characters of ids"
            )
        if control is None:
            return Next.WRITE
        self._close_round(text, parse_ids(text, self.request.view.knows))
        if len(self.rounds) == self.request.limits.rounds:
            self.forced.append(f"{self.request.limits.rounds} rounds")
            self.stage = "answer"
        return Next.PREFILL

    def _advance_answer(self, text: str, tokens: int, control: str | None) -> Next:
        self.answer_text = text
        if control is None and tokens < self.request.limits.answer_tokens:
            return Next.WRITE
        if control is None:
            self.forced.append(f"{self.request.limits.answer_tokens} tokens of answer")
        elif control != IM_END:
            self.forced.append(f"{control} in the answer")
        return Next.STOP

    def _request_answer(self, forced: str | None = None) -> Next:
        """Ends retrieval: the model wrote its end, or it is appended as if the model had."""
        self.stage = "answer"
        if self._chats:
            self.forced += [] if forced is None else [forced]
            return Next.PREFILL
        self.appended = answer_request_pieces(self.request.question)
        if forced is not None:
            self.forced.append(forced)
            self.appended = [*end_of_retrieve_pieces(), *self.appended]
        return Next.APPEND

    def _close_round(self, written: str, numbers: list[int]) -> None:
        """numbers: the documents to append, in the order in which they may fill the room."""
        appended, left_out = [], []
        room = self.request.limits.evidence_tokens - self._evidence_tokens
        if self.room is not None:
            room = min(room, self.room - min(self.request.limits.answer_tokens, _RESERVED_TOKENS))
        for number in numbers:
            document = self.request.view.documents[number]
            tokens = self.count(evidence_text(document))
            if tokens > room:
                left_out.append(number)
                continue
            appended.append(document)
            room -= tokens
            self._evidence_tokens += tokens
        appended.sort(key=lambda document: document.number)
        self.rounds.append(Round(written, tuple(appended)))
        if left_out:
            self.forced.append(f"no room for the texts of {written_ids(left_out)}")
