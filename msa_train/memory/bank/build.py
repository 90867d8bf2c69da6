"""Building a memory bank and adding to it: documents in, one commit out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from data_pipeline.progress import ProgressBar
from data_pipeline.schema import Document
from data_pipeline.tokenizer import Tokenizer
from msa_train.errors import BankError
from msa_train.memory.bank.blocks import BLOCKS, BlockEncoder, BlockSize, Encoding, blocks_of
from msa_train.memory.bank.encode import TOKEN_BUDGET
from msa_train.memory.bank.manifest import BankForm
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.unfinished import UnfinishedBank
from msa_train.memory.bank.writer import BankWriter
from msa_train.model.config import ModelConfig
from msa_train.model.decoder import MSADecoder

Expected = Callable[[], int | None]


def _unknown() -> None:
    return None


def _progress(expected: Expected) -> ProgressBar:
    return ProgressBar("encoding", "documents", expected, "tokens")


def build_bank(
    path: Path | str,
    model: MSADecoder,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    fingerprint: Mapping[str, str],
    dtype: str = "float16",
    token_budget: int = TOKEN_BUDGET,
    size: BlockSize = BLOCKS,
    ranks: Encoding | None = None,
    expected: Expected = _unknown,
) -> None:
    """Encodes documents (ascending number) into a new bank at `path`.

    fingerprint: names of what the states depend on (model, config, tokenizer) -> hash; opening
    compares them. dtype: float16 (default), bfloat16 or float32, of the stored states. ranks:
    processes that encode with models of their own (EncodingRanks) instead of this one. expected:
    how many documents come, as far as is known now.

    An interrupted build that is started again with the same form goes on where it stopped: blocks
    (of `size`) whose documents are still the same are not encoded again. Raises BankError where
    `path` exists, a setting is impossible, or writing fails; then no bank exists, but the finished
    blocks are kept.
    """
    path = Path(path)
    form = bank_form(model.config, fingerprint, dtype)
    encoding = ranks or BlockEncoder(model, tokenizer, token_budget)
    if path.exists():
        raise BankError(f"{path} exists: delete it, or build under another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with UnfinishedBank(path, form) as bank, _progress(expected) as progress:
            fresh = _without_finished(blocks_of(map(_named, documents), size), bank, progress)
            with contextlib.closing(
                encoding.segments(fresh, bank.target, bank.lock, progress.advance)
            ) as sealed:
                for entry in sealed:
                    bank.put(entry)
            bank.finish()
    except OSError as error:
        raise BankError(f"the bank {path} cannot be written: {error}") from error


def _without_finished(
    blocks: Iterable[list[Document]], bank: UnfinishedBank, progress: ProgressBar
) -> Iterator[list[Document]]:
    for block in blocks:
        if bank.has(block):
            progress.advance(len(block))
        else:
            yield block


def add_documents(
    path: Path | str,
    model: MSADecoder,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    fingerprint: Mapping[str, str],
    update: bool = False,
    token_budget: int = TOKEN_BUDGET,
    size: BlockSize = BLOCKS,
    ranks: Encoding | None = None,
    expected: Expected = _unknown,
    reuse: BankSnapshot | None = None,
) -> int:
    """Adds documents to a bank under new numbers, in one commit; returns how many.

    With `update` each takes the place of those with its id, whose numbers never come back. Raises
    BankError for an id that is in the bank already (or, updating, is not), and for an id that
    comes twice as a whole document. reuse: a snapshot of the bank, see BankWriter; the other
    settings are those of build_bank. Interrupted, nothing is added and it starts again.
    """
    operation = "update" if update else "add"
    encoding = ranks or BlockEncoder(model, tokenizer, token_budget)
    with (
        BankWriter(path, operation, dict(fingerprint), reuse=reuse) as writer,
        _progress(expected) as progress,
    ):
        replaced: set[int] = set()
        blocks = blocks_of(_numbered(documents, writer.bank, update, replaced), size)
        sealed = encoding.segments(blocks, writer.target, writer.lock, progress.advance)
        return writer.add_segments(sealed, replaced)


def _numbered(documents: Iterable[Document], bank: BankSnapshot, update: bool, replaced: set[int]):
    """Documents under the bank's next numbers; `replaced` collects the numbers they replace."""
    seen: set[tuple[str, int]] = set()
    for number, document in enumerate(documents, bank.manifest.next_number):
        if not document.id and not update:
            yield _named(replace(document, number=number))
            continue
        key = document.id, getattr(document, "part", 0)
        if key in seen:
            raise BankError(f"document id {document.id!r} comes twice: give each id once")
        seen.add(key)
        known = bank.numbers_of(document.id)
        if bool(known) != update:
            problem = "is not in" if update else "is in"
            remedy = "add it" if update else "update it"
            raise BankError(f"document id {document.id!r} {problem} {bank.path}: {remedy} instead")
        replaced.update(known)
        yield replace(document, number=number)


def _named(document: Document) -> Document:
    """With its number for an id, if it has none."""
    return document if document.id else replace(document, id=str(document.number))


def bank_form(config: ModelConfig, fingerprint: Mapping[str, str], dtype: str) -> BankForm:
    """What a model's banks are made of."""
    geometry = config.router_layers, config.kv_heads, config.head_dim, config.router.chunk_size
    return BankForm(dtype, *geometry, dict(fingerprint))
