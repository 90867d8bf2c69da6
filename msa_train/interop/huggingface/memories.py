"""What a user calls a memory, opened: a bank's folder, an opened bank or view, or texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.progress import ProgressBar
from data_pipeline.tokenizer import Tokenizer
from msa_train.errors import BankError, ConfigError
from msa_train.interop.huggingface.origin import Origin
from msa_train.memory.bank.corpus import Splitting
from msa_train.memory.bank.documents import StoredDocument
from msa_train.memory.bank.encode import encode_documents
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.search.in_memory import joined, view_of
from msa_train.memory.search.loader import BankLoader, bank_view
from msa_train.memory.search.settings import TierSettings
from msa_train.memory.search.view import MemoryView
from msa_train.model.decoder import MSADecoder

Memory = str | Path | BankSnapshot | MemoryView | Sequence[str]


def is_bank(memory: Memory) -> bool:
    """Whether it was encoded by the export that built it, on disk."""
    return isinstance(memory, str | Path | BankSnapshot)


def open_memory(memory: Memory, decoder: MSADecoder, origin: Origin) -> MemoryView:
    """A view for the model of an export, which may be asked any number of times.

    Texts are numbered from 0 and encoded now; long ones are split as `msa memory build` does, all
    parts under the text's place as their id. Raises BankError for a bank of another model, or
    nothing to answer from; ConfigError for what is none of these.
    """
    view = _view(memory, decoder, origin)
    if not len(view):
        raise BankError("the memory has no document to answer from: add some, or filter less")
    return view


def _view(memory: Memory, decoder: MSADecoder, origin: Origin) -> MemoryView:
    router = decoder.config.router
    if isinstance(memory, MemoryView):
        heads = memory.heads, memory.head_dim
        if memory.router != router or heads != (decoder.config.kv_heads, decoder.config.head_dim):
            raise BankError("this view is of a bank of another model: open the bank with this one")
        return memory
    if not is_bank(memory):
        return encoded(memory, decoder, origin.tokenizer)
    if isinstance(memory, BankSnapshot):
        memory.manifest.check_fingerprint(memory.path, origin.fingerprint)
        bank = memory
    else:
        bank = _opened(memory, origin)
    return bank_view(bank, router, BankLoader(TierSettings(), decoder.device))


def _opened(path: str | Path, origin: Origin) -> BankSnapshot:
    if not Path(path).exists():
        raise BankError(f"{path} is no memory bank: no such folder; a text alone goes into a list")
    return BankSnapshot.open(path, origin.fingerprint)


def encoded(texts: Any, decoder: MSADecoder, tokenizer: Tokenizer) -> MemoryView:
    """Texts as a memory without a bank. Raises as open_memory."""
    if not isinstance(texts, Sequence):
        raise ConfigError(
            f"memory is a {type(texts).__name__}: give a bank's folder, an opened bank, or a list "
            "of texts"
        )
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise ConfigError(f"memory[{place}] is a {type(text).__name__}: give texts")
    given = (StoredDocument(place, text, str(place)) for place, text in enumerate(texts))
    batches = []
    with ProgressBar("encoding", "documents", None, "tokens") as bar:
        for batch in encode_documents(decoder, tokenizer, Splitting(tokenizer)(given)):
            batches.append(batch)
            bar.advance(len(batch.documents), int(batch.tokens.sum()))
    held = [document for batch in batches for document in batch.documents]
    return view_of(held, *joined(batches), decoder.config.router)
