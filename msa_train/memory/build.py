"""Building a memory bank: everything is written beside the target, which appears at the very end.

A build that dies leaves a folder `.<bank>.building-*` and no bank.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.schema import Document
from data_pipeline.tokenizer import Tokenizer
from msa_train.errors import BankError
from msa_train.memory.bank import DTYPES, FORMAT, MANIFEST, VERSION, state_file
from msa_train.memory.documents import DocumentWriter
from msa_train.memory.encoder import TOKEN_BUDGET, EncodedBatch, encode_documents
from msa_train.memory.progress import with_progress
from msa_train.memory.search import STATES
from msa_train.model.config import ModelConfig
from msa_train.model.decoder import MSADecoder

SEGMENT = "segment-000000"
DOCUMENTS = "documents.arrow"


def build_bank(
    path: Path | str,
    model: MSADecoder,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    fingerprint: Mapping[str, str],
    dtype: str = "float16",
    token_budget: int = TOKEN_BUDGET,
    total: int | None = None,
) -> dict[str, Any]:
    """Encodes documents (ascending number) into a new bank at `path`; returns its manifest.

    fingerprint: names of what the states depend on (model, config, tokenizer) -> hash; opening
    compares them. dtype: float16 (default), bfloat16 or float32, of the stored states. total: how
    many documents come, for the time left. Raises BankError where `path` exists, a setting is
    impossible, or writing fails; then no bank exists.
    """
    path = Path(path)
    if dtype not in DTYPES:
        raise BankError(f"a bank's dtype is {dtype!r}: give one of {', '.join(DTYPES)}")
    if path.exists():
        raise BankError(f"{path} exists: delete it, or build under another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in unfinished_builds(path):
        print(f"{left}: an unfinished build; delete it unless one is running", file=sys.stderr)
    batches = encode_documents(model, tokenizer, documents, token_budget, DTYPES[dtype])
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.building-", dir=path.parent))
    try:
        manifest = _write(
            folder, with_progress(batches, total), model.config, dict(fingerprint), dtype
        )
        os.chmod(folder, 0o755)  # mkdtemp makes it private
        if path.exists():
            raise BankError(f"{path} appeared while its documents were encoded; it is left alone")
        os.rename(folder, path)
        _sync(path.parent)
        return manifest
    except OSError as error:
        raise BankError(f"the bank {path} cannot be written: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unfinished_builds(path: Path | str) -> list[Path]:
    """Folders that interrupted (or running) builds of the bank `path` left beside it."""
    path = Path(path)
    pattern = f".{glob.escape(path.name)}.building-*"
    return sorted(path.parent.glob(pattern)) if path.parent.is_dir() else []


def _write(
    folder: Path,
    batches: Iterable[EncodedBatch],
    config: ModelConfig,
    fingerprint: dict[str, str],
    dtype: str,
) -> dict[str, Any]:
    segment = folder / SEGMENT
    segment.mkdir()
    counts = _write_segment(segment, batches, config)
    files = {}
    for file in sorted(segment.iterdir()):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files[file.name] = {"bytes": file.stat().st_size, "sha256": digest}
        _sync(file)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": fingerprint,
        "dtype": dtype,
        "layers": list(config.router_layers),
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "chunk_size": config.router.chunk_size,
        "segments": [{"name": SEGMENT, **counts, "files": files}],
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    for each in (segment, folder / MANIFEST, folder):
        _sync(each)
    return manifest


def _write_segment(
    segment: Path, batches: Iterable[EncodedBatch], config: ModelConfig
) -> dict[str, int]:
    counts = {"documents": 0, "chunks": 0, "tokens": 0}
    with ExitStack() as stack:
        documents = DocumentWriter(segment / DOCUMENTS)
        stack.callback(documents.close)
        files = {
            (layer, name): stack.enter_context((segment / state_file(layer, name)).open("wb"))
            for layer in config.router_layers
            for name in STATES
        }
        for batch in batches:
            rows = zip(batch.documents, batch.tokens.tolist(), batch.chunks.tolist(), strict=True)
            for document, tokens, chunks in rows:
                documents.append(document, tokens, chunks)
            for (layer, name), file in files.items():
                file.write(_bytes(getattr(batch.pooled[layer], name), layer, name))
            counts["documents"] += len(batch.documents)
            counts["chunks"] += int(batch.chunks.sum())
            counts["tokens"] += int(batch.tokens.sum())
    return counts


def _bytes(states: Tensor, layer: int, name: str) -> memoryview:
    if not states.isfinite().all():
        raise BankError(
            f"{name} of layer {layer} is not finite as {str(states.dtype).removeprefix('torch.')}: "
            "the weights are broken, or the states need the dtype float32"
        )
    return memoryview(states.contiguous().flatten().view(torch.uint8).numpy())


def _sync(path: Path) -> None:
    """Makes a file, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
