"""What a plan is made for: the size of a bank, how it is served, and on what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msa_train.errors import ConfigError
from msa_train.memory.planner.hardware import Card

if TYPE_CHECKING:
    from msa_train.memory.bank.manifest import BankManifest

KEYS, STATES = ("stored", "float32", "bfloat16", "int8", "fp8"), ("mapped", "host")
STORED = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class BankSize:
    """documents, chunks, tokens in all; dtype of the stored states."""

    documents: int
    chunks: int
    tokens: int
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in STORED:
            raise ConfigError(f"dtype is {self.dtype!r}: give {', '.join(STORED)}")
        if not 0 <= self.documents <= self.chunks <= self.tokens:
            raise ConfigError(
                f"a memory of {self.tokens:,} tokens, {self.chunks:,} chunks and "
                f"{self.documents:,} documents: every document has a chunk, every chunk a token"
            )

    @classmethod
    def of_manifest(cls, manifest: BankManifest) -> BankSize:
        """What a bank holds, removed documents among it (none: a bank that is still empty)."""
        counts = (
            sum(getattr(entry, name) for entry in manifest.segments)
            for name in ("documents", "chunks", "tokens")
        )
        return cls(*counts, manifest.form.dtype)

    @classmethod
    def of_tokens(
        cls,
        tokens: int,
        chunk_size: int,
        document_tokens: int | None = None,
        chunks_per_1k: float | None = None,
        dtype: str = "bfloat16",
    ) -> BankSize:
        """document_tokens: of every document (none: documents of one full chunk). chunks_per_1k:
        chunks of 1,000 tokens, where lengths vary and last chunks are short (`msa memory info` of a
        bank like it gives both counts)."""
        length = chunk_size if document_tokens is None else document_tokens
        if length < 1:
            raise ConfigError(f"document-tokens is {length}: give 1 or more")
        documents = math.ceil(tokens / length)
        chunks = math.ceil(tokens / length * math.ceil(length / chunk_size))
        if chunks_per_1k is not None:
            if not 1000 / chunk_size <= chunks_per_1k <= 1000:
                raise ConfigError(
                    f"chunks-per-1k is {chunks_per_1k}: chunks of up to {chunk_size} tokens are "
                    f"{1000 / chunk_size:.4g} (all full) to 1000 of 1,000 tokens"
                )
            chunks = math.ceil(tokens * chunks_per_1k / 1000)
            documents = min(documents, chunks)
        return cls(documents, chunks, tokens, dtype)


@dataclass(frozen=True)
class Serving:
    """keys, states, hot_mb: memory/search/settings.py. slots, slot_tokens: contexts that decode at
    once, and the length of each. question_tokens: T of the floor. compute: dtype of weights and
    slots."""

    keys: str = "stored"
    states: str = "mapped"
    hot_mb: float = 256.0
    slots: int = 32
    slot_tokens: int = 4096
    question_tokens: int = 32
    compute: str = "bfloat16"

    def __post_init__(self) -> None:
        for name, known in (
            ("keys", KEYS), ("states", STATES), ("compute", STORED),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}: give {', '.join(known)}")
        for name, least in (
            ("hot_mb", 0),
            ("slots", 1),
            ("slot_tokens", 1),
            ("question_tokens", 1),
        ):
            if not least <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}: give {least} or more")


@dataclass(frozen=True)
class Machine:
    """cards: one per rank (none: a CPU computes, in host memory). host: bytes of memory that may be
    used; host_bandwidth: bytes per second, 0 where unknown."""

    cards: tuple[Card, ...]
    host: int
    host_bandwidth: float = 0.0
