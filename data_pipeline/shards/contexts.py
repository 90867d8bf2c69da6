"""From a bank and its questions to a sample: one bank, many contexts (SPEC section 4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from data_pipeline.protocol import (
    NOT_FOUND,
    answer_pieces,
    answer_request_pieces,
    chat_answer_pieces,
    chat_pieces,
    end_of_retrieve_pieces,
    evidence_pieces,
    memory_answer_pieces,
    retrieval_pieces,
    text_pieces,
)
from data_pipeline.schema import ASKED_KINDS, Context, Document, Kind, Piece, Query, Role, Sample
from data_pipeline.settings import ContextConfig
from data_pipeline.sources.base import DrawnBank


def retrieve_context(
    query: Query, step: int = 0, documents: Mapping[int, Document] | None = None
) -> Context:
    """One retrieval step: the model writes the ids of the documents that this step must find.

    In a chain, those of earlier steps stand in the context with their texts, and are neither
    positive nor negative any more; those of later steps cannot be found yet, and are masked too.
    """
    steps = query.steps or (query.positives,)
    response = [piece for found in steps[:step] for piece in _found(found, documents)]
    other = {number for i, found in enumerate(steps) if i != step for number in found}
    return Context(
        query.question,
        "retrieve",
        (*_only_latest_routes(response), *retrieval_pieces(steps[step])),
        steps[step],
        tuple(sorted(other.union(query.masked))),
        rounds=step,
    )


def answer_text_context(
    query: Query, evidence: tuple[Document, ...], documents: Mapping[int, Document] | None = None
) -> Context:
    """All evidence has been appended: the model ends retrieval and answers; no router loss.

    evidence: what the last retrieval step brought; in a chain `documents` give the texts of those
    before.
    """
    earlier = [piece for found in query.steps[:-1] for piece in _found(found, documents)]
    response = [
        *_only_latest_routes([*earlier, *_appended(evidence)]),
        *end_of_retrieve_pieces(label=True),
        *answer_request_pieces(query.question),
        *answer_pieces(query.answers[0]),
    ]
    return Context(query.question, "answer_text", tuple(response), rounds=max(1, len(query.steps)))


def answer_chat_context(query: Query, evidence: tuple[Document, ...]) -> Context:
    """As answer_text_context, in the chat form; the evidence is of all steps."""
    pieces = [*chat_pieces(query.question, evidence), *chat_answer_pieces(query.answers[0])]
    return Context(query.question, "answer_chat", tuple(pieces))


def answer_memory_context(query: Query) -> Context:
    """No ids and no texts: the model answers from pooled memory, routed at the prompt."""
    response = [*memory_answer_pieces(query.question), *answer_pieces(query.answers[0])]
    return Context(query.question, "answer_memory", tuple(response), query.positives, query.masked)


def text_context(text: str) -> Context:
    """Plain text, without a question or a memory."""
    return Context("", "text", tuple(text_pieces(text)))


def make_sample(
    rng: np.random.Generator, bank: DrawnBank, config: ContextConfig, source: str = ""
) -> Sample:
    """Every question of the bank becomes one context; its kind is drawn in proportion.

    A question without an answer can only be retrieved for. Plain texts follow.
    """
    proportions = np.array([getattr(config, kind) for kind in ASKED_KINDS], dtype=np.float64)
    kinds = rng.choice(len(ASKED_KINDS), len(bank.queries), p=proportions / proportions.sum())
    by_number = {document.number: document for document in bank.documents}
    contexts = [
        _context(rng, query, ASKED_KINDS[kind] if query.answers else "retrieve", by_number, config)
        for query, kind in zip(bank.queries, kinds.tolist(), strict=True)
    ]
    return Sample(bank.documents, (*contexts, *map(text_context, bank.texts)), source)


def _context(
    rng: np.random.Generator,
    query: Query,
    kind: Kind,
    by_number: Mapping[int, Document],
    config: ContextConfig,
) -> Context:
    if kind == "retrieve":
        step = int(rng.integers(len(query.steps))) if query.steps else 0
        return retrieve_context(query, step, by_number)
    if kind == "answer_memory":
        return answer_memory_context(query)
    absent = config.absent_share > 0 and rng.random() < config.absent_share
    if absent:
        query = replace(query, answers=(NOT_FOUND,))
    numbers = _read(rng, query, by_number, config, absent)
    if config.answers == "chat":
        earlier = {number for step in query.steps[:-1] for number in step}
        return answer_chat_context(query, _texts(numbers | earlier, by_number))
    return answer_text_context(query, _texts(numbers, by_number), by_number)


def _texts(numbers: Iterable[int], by_number: Mapping[int, Document]) -> tuple[Document, ...]:
    return tuple(by_number[number] for number in sorted(numbers))


def _read(
    rng: np.random.Generator,
    query: Query,
    by_number: Mapping[int, Document],
    config: ContextConfig,
    absent: bool,
) -> set[int]:
    """Documents whose texts are read: right ones, unless they are absent, and wrong ones."""
    right = set() if absent else set(query.steps[-1] if query.steps else query.positives)
    if not absent and rng.random() >= config.wrong_share:
        return right
    count = int(rng.integers(config.wrong_documents)) + 1
    if query.hard:
        return right.union(query.hard[:count])
    kept_out = {*query.positives, *query.masked} if absent else set()
    others = [number for number in by_number if number not in kept_out]
    if not others:
        return right
    return right.union(others[place] for place in rng.integers(len(others), size=count))


def _found(numbers: tuple[int, ...], documents: Mapping[int, Document] | None) -> list[Piece]:
    """A retrieval step that is over: ids and texts, as context."""
    assert documents is not None, "an earlier step's documents are needed"
    return _appended(tuple(documents[number] for number in numbers))


def _appended(evidence: tuple[Document, ...]) -> list[Piece]:
    numbers = (document.number for document in evidence)
    return [*retrieval_pieces(numbers, label=False), *evidence_pieces(evidence)]


def _only_latest_routes(pieces: list[Piece]) -> list[Piece]:
    """Only the latest evidence is a routing query (SPEC section 4)."""
    last = max((i for i, piece in enumerate(pieces) if piece.role == Role.QUERY), default=None)
    return [
        replace(piece, role=Role.RESPONSE) if piece.role == Role.QUERY and i != last else piece
        for i, piece in enumerate(pieces)
    ]
