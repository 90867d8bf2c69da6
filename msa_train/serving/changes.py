"""Changes of a bank: documents added, updated, replaced or removed in one commit, which the next
question sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data_pipeline.schema import Document
from msa_train.memory.bank.build import add_documents
from msa_train.memory.bank.corpus import Splitting
from msa_train.memory.bank.documents import StoredDocument
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.writer import BankWriter
from msa_train.serving.banks import ServedBank, ServedModel
from msa_train.serving.errors import ApiError
from msa_train.serving.lookup import matching
from msa_train.serving.schemas import Content, Removal, replacement
from msa_train.serving.threads import GoingOn


def put_documents(
    bank: ServedBank,
    model: ServedModel,
    documents: Sequence[StoredDocument],
    update: bool,
    wait_s: float,
    going_on: GoingOn,
) -> list[int]:
    """Encodes and commits; returns the new numbers, ascending (several for one that was split).

    Raises ApiError: 400 for an id given twice, 404 for an update of an id that is not there, 409
    for an added id that is, or where another process writes. Nothing is changed where going_on
    raises.
    """
    _check_ids(documents, update)
    return _put(bank, model, documents, wait_s, going_on, update=update)


def replace_document(
    bank: ServedBank,
    model: ServedModel,
    number: int,
    content: Content,
    wait_s: float,
    going_on: GoingOn,
) -> list[int]:
    """As put_documents: another content (schemas.replacement) under a new number and the id of the
    old one, which goes with all its parts in the same commit. Raises ApiError 404 where it is not
    there: who changes what somebody else has changed meanwhile is told so."""
    given = [replacement(content, bank.document(number))]
    return _put(bank, model, given, wait_s, going_on, replacing=number)


def _put(
    bank: ServedBank,
    model: ServedModel,
    documents: Sequence[StoredDocument],
    wait_s: float,
    going_on: GoingOn,
    update: bool = False,
    replacing: int | None = None,
) -> list[int]:
    """The new numbers. update, replacing: as in add_documents."""
    # As `msa memory add` does, but before others have to wait for their turn to write.
    parts = list(Splitting(model.tokenizer, going_on=going_on)(documents))
    first = 0

    def checked() -> Iterator[Document]:
        """Read while the writer holds the bank's lock: `first` is the first number given."""
        nonlocal first
        bank.view()  # with what other processes committed before they released the lock
        first = bank.snapshot.manifest.next_number
        if replacing is None:
            _check_known(bank, documents, update)
        for document in parts:
            going_on()
            yield document

    with bank.writing(wait_s, going_on), bank.named_errors():
        given = bank.path, model.model, model.tokenizer, checked(), model.fingerprint
        added = add_documents(*given, update, reuse=bank.snapshot, replacing=replacing)
        bank.view()
    return list(range(first, first + added))


def remove_documents(
    bank: ServedBank, wanted: Removal, wait_s: float, going_on: GoingOn
) -> list[int]:
    """Removes all or none, of a split document all parts; returns the removed numbers. Raises
    ApiError: 404 for unknown ones, 409 where not as many match as the client was told. None is
    removed where going_on raises."""
    with (
        bank.writing(wait_s, going_on),
        bank.named_errors(),
        BankWriter(bank.path, "remove", reuse=bank.snapshot) as writer,
    ):
        gone = writer.remove(_numbers(bank, writer.bank, wanted, going_on), wanted.ids)
        if gone:
            bank.view()
    return gone


def _numbers(
    bank: ServedBank, stored: BankSnapshot, wanted: Removal, going_on: GoingOn
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
