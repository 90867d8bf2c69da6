"""Changes of a bank: documents added, updated, replaced or removed in one commit, which the next
question sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from threading import Event
from typing import Any

from data_pipeline.schema import Document
from msa_train.memory.bank.build import add_documents
from msa_train.memory.bank.corpus import Splitting
from msa_train.memory.bank.documents import StoredDocument
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.writer import BankWriter, UnknownDocumentError
from msa_train.serving.banks import ServedBank, ServedModel
from msa_train.serving.errors import ApiError, ClientGone
from msa_train.serving.lookup import matching
from msa_train.serving.schemas import Content, Removal, replacement


def put_documents(
    bank: ServedBank,
    model: ServedModel,
    documents: Sequence[StoredDocument],
    update: bool,
    wait_s: float,
    abandoned: Event,
) -> list[int]:
    """Encodes and commits; returns the new numbers, ascending (several for one that was split).

    Raises ApiError: 400 for an id given twice, 404 for an update of an id that is not there, 409
    for an added id that is, or where another process writes. Once `abandoned` is set, it ends
    without a change.
    """
    _check_ids(documents, update)
    check = partial(_check_known, bank, documents, update)
    return _put(bank, model, documents, check, wait_s, abandoned, update=update)


def replace_document(
    bank: ServedBank,
    model: ServedModel,
    number: int,
    content: Content,
    wait_s: float,
    abandoned: Event,
) -> list[int]:
    """As put_documents: another content (schemas.replacement) under a new number and the id of the
    old one, which goes with all its parts in the same commit. Raises ApiError 404 where it is not
    there: who changes what somebody else has changed meanwhile is told so."""
    bank.view()
    try:
        with bank.named_errors():
            old = bank.snapshot[number]
    except KeyError:
        raise bank.no_document(str(number)) from None
    given = [replacement(content, old)]
    return _put(bank, model, given, lambda: None, wait_s, abandoned, replacing=number)


def _put(
    bank: ServedBank,
    model: ServedModel,
    documents: Sequence[StoredDocument],
    check: Callable[[], None],
    wait_s: float,
    abandoned: Event,
    **how: Any,
) -> list[int]:
    """The new numbers. check: called while the bank is locked, before anything is encoded."""

    def going_on() -> None:
        if abandoned.is_set():
            raise ApiError(503, "abandoned", "nobody waits any more: nothing was changed")

    # As `msa memory add` does, but before others have to wait for their turn to write.
    parts = list(Splitting(model.tokenizer, going_on=going_on)(documents))
    first = 0

    def checked() -> Iterator[Document]:
        """Read while the writer holds the bank's lock: `first` is the first number given."""
        nonlocal first
        bank.view()  # with what other processes committed before they released the lock
        first = bank.snapshot.manifest.next_number
        check()
        for document in parts:
            going_on()
            yield document

    with bank.writing(wait_s, going_on), bank.named_errors():
        given = bank.path, model.model, model.tokenizer, checked(), model.fingerprint
        try:
            added = add_documents(*given, reuse=bank.snapshot, **how)
        except UnknownDocumentError as error:
            raise bank.no_document(error.which) from None
        bank.view()
    return list(range(first, first + added))


def remove_documents(
    bank: ServedBank, wanted: Removal, wait_s: float, abandoned: Event
) -> list[int]:
    """Removes all or none, of a split document all parts; returns the removed numbers. Raises
    ApiError: 404 for unknown ones, 409 where not as many match as the client was told. Once
    `abandoned` is set, it ends without a change."""

    def going_on() -> None:
        if abandoned.is_set():
            raise ClientGone

    with (
        bank.writing(wait_s, going_on),
        bank.named_errors(),
        BankWriter(bank.path, "remove", reuse=bank.snapshot) as writer,
    ):
        try:
            gone = writer.remove(_numbers(bank, writer.bank, wanted, going_on), wanted.ids)
        except UnknownDocumentError as error:
            raise bank.no_document(error.which) from None
        if gone:
            bank.view()
    return gone


def _numbers(
    bank: ServedBank, stored: BankSnapshot, wanted: Removal, going_on: Callable[[], None]
) -> Iterator[int]:
    """Of the documents that go, apart from those that go by id."""
    numbers = wanted.numbers
    if wanted.matching is not None:
        found = stored.numbers[matching(stored, wanted.matching, going_on)].tolist()
        if len(found) != wanted.matching.count:
            raise ApiError(
                409,
                "matches_changed",
                f"{len(found):,} documents of bank {bank.name!r} match now, not "
                f"{wanted.matching.count:,}: nothing was removed",
            )
        numbers = [*numbers, *found]
    for number in numbers:
        going_on()
        yield number


def _check_known(bank: ServedBank, documents: Sequence[StoredDocument], update: bool) -> None:
    for document in documents:
        known = bool(document.id) and bool(bank.snapshot.numbers_of(document.id))
        if known and not update:
            raise ApiError(
                409,
                "id_exists",
                f"bank {bank.name!r} has a document of id {document.id!r}: update it (PUT), or "
                "give another id",
            )
        if update and not known:
            raise bank.no_document(f"of id {document.id!r} to update")


def _check_ids(documents: Sequence[StoredDocument], update: bool) -> None:
    seen: set[str] = set()
    for place, document in enumerate(documents):
        if update and not document.id:
            raise ApiError(400, "no_id", f"documents[{place}] has no id: an update goes by id")
        if document.id and document.id in seen:
            raise ApiError(400, "id_twice", f"documents[{place}]: id {document.id!r} comes twice")
        seen.add(document.id)
