"""Changing a served bank: documents in or out, one commit, visible to the next question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from threading import Event

from data_pipeline.schema import Document
from msa_train.errors import BankError, RankError
from msa_train.memory.bank.build import add_documents
from msa_train.memory.bank.corpus import Splitting
from msa_train.memory.bank.documents import StoredDocument
from msa_train.memory.bank.writer import BankWriter, UnknownDocumentError
from msa_train.serving.banks import ServedBank, ServedModel
from msa_train.serving.failures import ApiError, translated

DOCUMENT_TOKENS = 2048  # longer ones are split, as `msa memory add` does


def put_documents(
    bank: ServedBank,
    model: ServedModel,
    documents: Sequence[StoredDocument],
    update: bool,
    wait_s: float,
    abandoned: Event,
) -> list[int]:
    """Encodes and commits; the new numbers, ascending (several for one that was split).

    Raises ApiError: 400 for an id that comes twice, 404 for one to update that is not there, 409
    for one to add that is, or where another process writes. `abandoned` ends it without a change.
    """
    _check_once(documents, update)
    taken = _Numbered(bank, update, abandoned)
    splitting = Splitting(model.tokenizer, DOCUMENT_TOKENS)
    with bank.writing(wait_s), named_errors(bank):
        add_documents(
            bank.path,
            model.model,
            model.tokenizer,
            taken(documents, splitting),
            model.fingerprint,
            update=update,
            reuse=bank.stored,
        )
        bank.view()
    return list(range(taken.first, taken.first + taken.count))


def remove_documents(
    bank: ServedBank, ids: Iterable[str], numbers: Iterable[int], wait_s: float
) -> list[int]:
    """All or none; the numbers that went. Raises ApiError 404 for what is not there."""
    with (
        bank.writing(wait_s),
        named_errors(bank),
        BankWriter(bank.path, "remove", reuse=bank.stored) as writer,
    ):
        try:
            gone = writer.remove(numbers, ids)
        except UnknownDocumentError as error:
            raise not_found(bank, error.which) from None
        if gone:
            bank.view()
    return gone


def not_found(bank: ServedBank, which: str) -> ApiError:
    return ApiError(404, "document_not_found", f"bank {bank.name!r} has no document {which}")


class named_errors:
    """A bank's errors as a client is told them: its name, not its folder."""

    def __init__(self, bank: ServedBank):
        self._bank = bank

    def __enter__(self) -> None:
        pass

    def __exit__(self, _, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, BankError | RankError):
            return
        told = translated(error)
        message = str(error).replace(str(self._bank.path), f"bank {self._bank.name!r}")
        raise ApiError(told.status, told.code, message, told.headers) from error


class _Numbered:
    """Passes documents on while the bank's lock is held: so `first` is the first number given."""

    def __init__(self, bank: ServedBank, update: bool, abandoned: Event):
        self._bank, self._update, self._abandoned = bank, update, abandoned
        self.first = self.count = 0

    def __call__(
        self, documents: Sequence[StoredDocument], splitting: Splitting
    ) -> Iterator[Document]:
        self._bank.view()  # with what other processes wrote before they gave the lock back
        stored = self._bank.stored
        self.first = stored.manifest.next_number
        for document in documents:
            known = bool(document.id) and bool(stored.numbers_of(document.id))
            if known and not self._update:
                raise ApiError(
                    409,
                    "id_exists",
                    f"bank {self._bank.name!r} has a document of id {document.id!r}: update it "
                    "(PUT), or give another id",
                )
            if self._update and not known:
                raise not_found(self._bank, f"of id {document.id!r} to update")
        for document in splitting(documents):
            if self._abandoned.is_set():
                raise ApiError(503, "abandoned", "nobody waits any more: nothing was changed")
            self.count += 1
            yield document


def _check_once(documents: Sequence[StoredDocument], update: bool) -> None:
    seen: set[str] = set()
    for place, document in enumerate(documents):
        if update and not document.id:
            raise ApiError(400, "no_id", f"documents[{place}] has no id: an update goes by id")
        if document.id and document.id in seen:
            raise ApiError(400, "id_twice", f"documents[{place}]: id {document.id!r} comes twice")
        seen.add(document.id)
