"""How fast documents are encoded for a memory, beside what nothing can beat: `msa bench encode`.

The floor is the arithmetic of the layers that documents go through, at the rate of a plain matrix
product of the same dtype on the same threads.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_pipeline.protocol import document_pieces
from data_pipeline.schema import Document
from data_pipeline.tokenizer import Tokenizer
from msa_train.bench.floor import Floor, encode_flops
from msa_train.bench.runner import process_bytes
from msa_train.interop.export import LoadedModel, Placement, load_export
from msa_train.memory.bank.encode import encode_documents
from msa_train.router.examples import read_examples

TOKENS = 200_000  # of documents that are encoded
_WARM = 8  # documents


def measure(export: Path, corpus: str, placed: Placement, tokens: int = TOKENS) -> dict[str, Any]:
    """A row. corpus: as in read_examples; its first `tokens` tokens are encoded, or all it has.

    tokens_per_s holds tokenizing, as a bank's build does; of documents cut at 512 tokens.
    """
    loaded = load_export(export, placed)
    dtype = next(loaded.model.parameters()).dtype
    documents = read_examples(corpus, loaded.tokenizer).documents
    lengths = _lengths(documents, loaded.tokenizer, tokens)
    documents = documents[: len(lengths)]
    _encode(loaded, documents[:_WARM])
    began = time.perf_counter()
    _encode(loaded, documents)
    rate = sum(lengths) / (time.perf_counter() - began)
    flops = encode_flops(loaded.model.config, lengths)
    floor = sum(lengths) / (flops / Floor.measured(dtype).flops_per_ms * 1e-3)
    return {
        "documents": len(documents),
        "tokens": sum(lengths),
        "layers": loaded.model.config.last_router_layer + 1,
        "dtype": str(dtype).removeprefix("torch."),
        "tokens_per_s": round(rate),
        "floor_tokens_per_s": round(floor),
        "ratio": round(floor / rate, 2),
        "mflop_per_token": round(flops / sum(lengths) / 1e6, 1),
        "peak_mb": round(process_bytes()["peak"] / (1 << 20)),
        "threads": torch.get_num_threads(),
    }


def _lengths(documents: Sequence[Document], tokenizer: Tokenizer, tokens: int) -> list[int]:
    """Tokens of the first documents: as many as `tokens` hold, at least one."""
    lengths: list[int] = []
    for each in documents:
        pieces = document_pieces(each.number, each.text)
        length = len(tokenizer.encode_pieces(pieces).tokens)
        if lengths and sum(lengths) + length > tokens:
            break
        lengths.append(length)
    return lengths


def _encode(loaded: LoadedModel, documents: Sequence[Document]) -> None:
    for _ in encode_documents(loaded.model, loaded.tokenizer, documents):
        pass
