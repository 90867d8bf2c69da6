"""Questions that a bank can be asked, made of a few of its documents."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from data_pipeline.clozes import plain_questions
from msa_train.memory.bank.documents import StoredDocument
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.serving.banks import ServedBank
from msa_train.serving.threads import GoingOn

_LOOKED_AT = 6  # documents for each question that is wanted, at most
_BEGINNING = 2000  # characters of a document, out of which questions are made
_LONGEST = 160  # characters of a question


def examples(bank: ServedBank, limit: int, going_on: GoingOn) -> list[dict[str, Any]]:
    """`question`, and `number` of the document that it is about: `limit` at most, none of them
    twice, the same for the same state of the bank. Few documents are read, and no model is asked.

    Raises ApiError for a bank that cannot be read.
    """
    bank.view()
    found: dict[str, int] = {}
    with bank.named_errors():
        for document in _sample(bank.snapshot, limit * _LOOKED_AT):
            going_on()
            if len(found) == limit:
                break
            question = next(_questions(document), None)
            if question is not None:
                found.setdefault(question, document.number)
    return [{"question": question, "number": number} for question, number in found.items()]


def _sample(snapshot: BankSnapshot, most: int) -> Iterator[StoredDocument]:
    places = snapshot.live.nonzero().squeeze(1).tolist()
    drawn = random.Random(len(places)).sample(places, min(most, len(places)))
    return map(snapshot.at, drawn)


def _questions(document: StoredDocument) -> Iterator[str]:
    """Those that fit on one line and can be read: a text may hold anything."""
    body = document.text[:_BEGINNING].removeprefix(f"{document.title}\n")
    for question in plain_questions(body, document.title):
        if len(question) <= _LONGEST and question.isprintable():
            yield question
