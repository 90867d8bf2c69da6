"""Building a memory bank, and adding to one: documents in, one commit out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data_pipeline import files
from data_pipeline.progress import ProgressBar
from data_pipeline.schema import Document
from data_pipeline.tokenizer import Tokenizer
from msa_train.errors import BankError
from msa_train.memory.bank.checks import changed_files
from msa_train.memory.bank.encode import (
    BLOCKS,
    BlockEncoder,
    BlockSize,
    Encoding,
    blocks_of,
)
from msa_train.memory.bank.lock import BusyError, WriterLock
from msa_train.memory.bank.manifest import BankForm, SegmentEntry, building_name
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.writer import BankWriter, UnknownDocumentError, create_bank
from msa_train.model.config import ModelConfig
from msa_train.model.decoder import MSADecoder

Expected = Callable[[], int | None]


def bank_form(config: ModelConfig, fingerprint: Mapping[str, str], dtype: str) -> BankForm:
    """The form of the banks that a model builds."""
    all_read = config.reading_layers == config.router_layers
    return BankForm(
        dtype,
        config.router_layers,
        config.kv_heads,
        config.head_dim,
        config.router.chunk_size,
        dict(fingerprint),
        reads=None if all_read else config.reading_layers,
        key_heads=config.router.key_heads,
        key_head_dim=config.router.head_dim,
    )


def _progress(expected: Expected) -> ProgressBar:
    return ProgressBar("encoding", "documents", expected, "tokens")


def build_bank(
    path: Path | str,
    model: MSADecoder,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    fingerprint: Mapping[str, str],
    dtype: str = "float16",
    token_budget: int | None = None,
    size: BlockSize = BLOCKS,
    ranks: Encoding | None = None,
    expected: Expected = lambda: None,
) -> None:
    """Encodes documents (ascending number) into a new bank at `path`.

    fingerprint: a hash for each thing that the states depend on (model, config, tokenizer), by
    name; they are compared when the bank is opened. dtype of the stored states: float16 (default),
    bfloat16 or float32. ranks: processes that encode with models of their own (EncodingRanks)
    instead of this one. expected: how many documents will come, as far as is known at the moment.

    An interrupted build that is started again with the same form continues where it stopped: blocks
    (of `size`) whose documents are still the same are not encoded again. Raises BankError where
    `path` exists, an id comes twice, a setting is impossible, or writing fails; then no bank
    exists, but the finished blocks are kept.
    """
    path = Path(path)
    form = bank_form(model.config, fingerprint, dtype)
    encoding = ranks or BlockEncoder(model, tokenizer, token_budget)
    if path.exists():
        raise BankError(f"{path} exists: delete it, or build under another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with UnfinishedBank(path, form) as bank, _progress(expected) as progress:
            fresh = _unencoded(blocks_of(_once(documents), size), bank, progress)
            with contextlib.closing(
                encoding.segments(fresh, bank.writer.target, bank.writer.lock, progress.advance)
            ) as sealed:
                for entry in sealed:
                    bank.put(entry)
            bank.finish()
    except OSError as error:
        raise BankError(f"the bank {path} cannot be written: {error}") from error


def _unencoded(
    blocks: Iterable[list[Document]], bank: UnfinishedBank, progress: ProgressBar
) -> Iterator[list[Document]]:
    """The blocks that no earlier build has finished."""
    for block in blocks:
        if bank.has(block):
            progress.advance(len(block))
        else:
            yield block


def _once(documents: Iterable[Document]) -> Iterator[Document]:
    """Documents, each id once, or for the parts of one document, ascending. Raises BankError."""
    seen: dict[str, int] = {}  # id -> its last part
    for document in documents:
        part = getattr(document, "part", 0)
        if document.id:
            before = seen.get(document.id)
            if before is not None and not 0 < before < part:
                raise BankError(f"document id {document.id!r} comes twice: give each id once")
            seen[document.id] = part
        yield document


class UnfinishedBank:
    """The writer of a bank that is being built; resumes an interrupted build of the same form.

    The bank lies beside its name, see building_name. Each finished block is a segment of its
    manifest, whose generation stays 0; the last commit and a rename make it the bank.

    Raises BusyError while another build is running. Leaving it without `finish` keeps the finished
    blocks, and says so; where there are none, nothing is left.
    """

    def __init__(self, path: Path, form: BankForm):
        self.path, self._folder = path, building_name(path)
        self.writer = self._resumed(form) or self._new(form)
        self._left = {each.entry.first: each for each in self.writer.bank.segments}
        self._used: list[SegmentEntry] = []
        self._finished = False

    def has(self, block: Sequence[Document]) -> bool:
        """Whether an earlier build finished this block: compares its documents and every byte."""
        segment = self._left.pop(block[0].number, None)
        if segment is None:
            return False
        if not segment.documents.holds(block):
            problem = f"{segment.folder} holds other documents"
        elif problems := changed_files(segment.folder.parent, segment.entry):
            problem = problems[0]
        else:
            self._used.append(segment.entry)
            return True
        _say(f"{problem}: encoded anew")
        self.writer.forget(segment.entry)
        return False

    def put(self, entry: SegmentEntry) -> None:
        """Records a finished block, which then need not be encoded again."""
        self.writer.keep(entry)
        self._used.append(entry)

    def finish(self) -> None:
        """Makes it the bank. Raises BankError where one appeared meanwhile."""
        if self.path.exists():
            raise BankError(f"{self.path} appeared while its documents were encoded: left alone")
        if self._used or self.writer.manifest.segments:
            self.writer.complete(self._used)
        files.rename(self._folder, self.path)
        self._finished = True

    def __enter__(self) -> UnfinishedBank:
        return self

    def __exit__(self, *_) -> None:
        try:
            # Where the rename succeeded but its sync failed, the bank is there under its name.
            if not self._finished and self._folder.exists():
                with contextlib.suppress(OSError):
                    self._leave()
        finally:
            self.writer.close()

    def _leave(self) -> None:
        segments = self.writer.manifest.segments
        if not segments:
            files.remove(self._folder)
            return
        documents = sum(entry.documents for entry in segments)
        _say(
            f"{documents:,} encoded documents are kept in {self._folder}: build again to go on, "
            "or remove it"
        )
        self.writer.clear()

    def _resumed(self, form: BankForm) -> BankWriter | None:
        if not self._folder.exists():
            return None
        try:
            writer = BankWriter(self._folder, "build", form.fingerprint)
        except BusyError:
            raise
        except BankError as error:
            problem = str(error)
        else:
            if writer.manifest.form == form:
                if found := len(writer.bank):
                    _say(f"{self._folder}: {found:,} documents are encoded already")
                writer.keep()  # back to generation 0, if it was complete but for its name
                return writer
            writer.close()
            problem = f"{self._folder} holds states of another form ({writer.manifest.form.dtype})"
        _say(f"{problem}; building anew")
        return None

    def _new(self, form: BankForm) -> BankWriter:
        if self._folder.exists():
            lock = WriterLock(self._folder, "build")  # refuses to remove what another build writes
            files.remove(self._folder)
            lock.release()
        create_bank(self._folder, form)
        return BankWriter(self._folder, "build")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def add_documents(
    path: Path | str,
    model: MSADecoder,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    fingerprint: Mapping[str, str],
    update: bool = False,
    token_budget: int | None = None,
    size: BlockSize = BLOCKS,
    ranks: Encoding | None = None,
    expected: Expected = lambda: None,
    reuse: BankSnapshot | None = None,
    replacing: int | None = None,
) -> int:
    """Adds documents to a bank under new numbers, in one commit; returns how many.

    With `update`, each replaces the documents that have its id, whose numbers are never reused.
    replacing: a document, named by its number, that they all take the place of (of a split one, of
    all parts); they may have its id. Raises BankError for an id that is in the bank already (or,
    updating, is not), and for one that comes twice; UnknownDocumentError where there is nothing to
    replace. reuse: a snapshot of the bank, see BankWriter; the other settings
    are those of build_bank. An interrupted call adds nothing, and has to start again.
    """
    operation = "update" if update else "add"
    encoding = ranks or BlockEncoder(model, tokenizer, token_budget)
    with (
        BankWriter(path, operation, dict(fingerprint), reuse=reuse) as writer,
        _progress(expected) as progress,
    ):
        replaced = _replaced(writer.bank, replacing)
        blocks = blocks_of(_numbered(documents, writer.bank, update, replaced), size)
        sealed = encoding.segments(blocks, writer.target, writer.lock, progress.advance)
        return writer.add_segments(sealed, replaced)


def _replaced(bank: BankSnapshot, number: int | None) -> set[int]:
    """Numbers of the document that is replaced, with all its parts."""
    if number is None:
        return set()
    try:
        return set(bank.whole_of(number))
    except KeyError:
        raise UnknownDocumentError(bank.path, str(number), "nothing was changed") from None


def _numbered(
    documents: Iterable[Document], bank: BankSnapshot, update: bool, replaced: set[int]
) -> Iterator[Document]:
    """Documents under the bank's next numbers; `replaced` collects the numbers they replace."""
    going = frozenset(replaced)  # also their ids are free
    for number, document in enumerate(_once(documents), bank.manifest.next_number):
        if not document.id:
            if update:
                raise BankError("a document to update has no id: an update goes by id")
            yield replace(document, number=number)
            continue
        known = set(bank.numbers_of(document.id)) - going
        if bool(known) != update:
            problem = "is not in" if update else "is in"
            remedy = "add it" if update else "update it"
            raise BankError(f"document id {document.id!r} {problem} {bank.path}: {remedy} instead")
        replaced.update(known)
        yield replace(document, number=number)
