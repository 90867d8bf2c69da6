"""Building a memory bank and adding to it: documents in, one commit out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from data_pipeline.schema import Document
from data_pipeline.tokenizer import Tokenizer
from msa_train import durable
from msa_train.errors import BankError
from msa_train.memory.encoder import TOKEN_BUDGET, encode_documents
from msa_train.memory.progress import with_progress
from msa_train.memory.storage.bank import MemoryBank
from msa_train.memory.storage.lock import WriterLock
from msa_train.memory.storage.manifest import BankForm, building_name
from msa_train.memory.storage.writer import BankWriter, create_bank
from msa_train.model.config import ModelConfig
from msa_train.model.decoder import MSADecoder


def build_bank(
    path: Path | str,
    model: MSADecoder,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    fingerprint: Mapping[str, str],
    dtype: str = "float16",
    token_budget: int = TOKEN_BUDGET,
    total: int | None = None,
) -> None:
    """Encodes documents (ascending number) into a new bank at `path`.

    fingerprint: names of what the states depend on (model, config, tokenizer) -> hash; opening
    compares them. dtype: float16 (default), bfloat16 or float32, of the stored states. total: how
    many documents come, for the time left. Raises BankError where `path` exists, a setting is
    impossible, or writing fails; then no bank exists.
    """
    path = Path(path)
    form = bank_form(model.config, fingerprint, dtype)
    if path.exists():
        raise BankError(f"{path} exists: delete it, or build under another name")
    building = building_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if building.exists():
            _discard_dead(building)
        create_bank(building, form)
        with BankWriter(building, "build") as writer:
            named = map(_named, documents)
            batches = encode_documents(model, tokenizer, named, token_budget, form.torch_dtype)
            writer.add(with_progress(batches, total))
            if path.exists():
                raise BankError(f"{path} appeared while its documents were encoded: left alone")
            durable.rename(building, path)
    except OSError as error:
        raise BankError(f"the bank {path} cannot be written: {error}") from error
    finally:
        if building.exists():
            with contextlib.suppress(OSError, BankError):
                _discard_dead(building)


def add_documents(
    path: Path | str,
    model: MSADecoder,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    fingerprint: Mapping[str, str],
    update: bool = False,
    token_budget: int = TOKEN_BUDGET,
) -> int:
    """Adds documents to a bank under new numbers, in one commit; returns how many.

    With `update` each takes the place of those with its id, whose numbers never come back. Raises
    BankError for an id that is in the bank already (or, updating, is not), and for an id that
    comes twice as a whole document.
    """
    with BankWriter(path, "update" if update else "add", dict(fingerprint)) as writer:
        replaced: set[int] = set()
        numbered = _numbered(documents, writer.bank, update, replaced)
        dtype = writer.manifest.form.torch_dtype
        batches = encode_documents(model, tokenizer, numbered, token_budget, dtype)
        return writer.add(with_progress(batches), replaced)


def _numbered(documents: Iterable[Document], bank: MemoryBank, update: bool, replaced: set[int]):
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


def _discard_dead(building: Path) -> None:
    """Removes what a dead build left. Raises BankError when it is alive."""
    lock = WriterLock(building, "build")
    if lock.dead:
        print(f"{building}: {lock.dead} did not finish; building anew", file=sys.stderr)
    durable.remove(building)
    lock.release()
