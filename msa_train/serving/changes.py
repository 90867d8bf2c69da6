"""Changes of a bank: documents added, updated or removed in one commit, which the next question
sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from threading import Event

from data_pipeline.schema import Document
from msa_train.memory.bank.build import add_documents
from msa_train.memory.bank.corpus import Splitting
from msa_train.memory.bank.documents import StoredDocument
from msa_train.memory.bank.writer import BankWriter, UnknownDocumentError
from msa_train.serving.banks import ServedBank, ServedModel
from msa_train.serving.errors import ApiError


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
        _check_known(bank, documents, update)
        for document in parts:
            going_on()
            yield document

    with bank.writing(wait_s, going_on), bank.named_errors():
        added = add_documents(
            bank.path,
            model.model,
            model.tokenizer,
            checked(),
            model.fingerprint,
            update=update,
            reuse=bank.snapshot,
        )
        bank.view()
    return list(range(first, first + added))


def remove_documents(
    bank: ServedBank, ids: Iterable[str], numbers: Iterable[int], wait_s: float
) -> list[int]:
    """Removes all or none; returns the removed numbers. Raises ApiError 404 for unknown ones."""
    with (
        bank.writing(wait_s),
        bank.named_errors(),
        BankWriter(bank.path, "remove", reuse=bank.snapshot) as writer,
    ):
        try:
            gone = writer.remove(numbers, ids)
        except UnknownDocumentError as error:
            raise bank.no_document(error.which) from None
        if gone:
            bank.view()
    return gone


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
