"""How much is measured: everything, or a little of each part in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from msa_train.memory.search.settings import KeyForm

M = 1_000_000


@dataclass(frozen=True)
class Sizes:
    """scale, append, dense: memory tokens of each row. planted: needles in a bank that are asked
    for; sample: encoded needles from whose statistics the others' states are drawn. real: at least
    so many tokens of real text. added: documents added at once. chunks, width, heads, queries: of
    the large layer, and its numbers of question tokens. vectors: in FAISS's index. repeats: timed
    runs. forms: of the keys that pooled queries search."""

    scale: tuple[int, ...] = (M, 4 * M, 16 * M, 100 * M)
    planted: int = 1024
    sample: int = 2048
    real: int = 5 * M
    append: tuple[int, ...] = (M, 10 * M)
    added: int = 1000
    chunks: int = 1_562_500
    width: int = 1024
    heads: int = 8
    queries: tuple[int, ...] = (16, 64)
    vectors: int = 1_562_500
    forms: tuple[KeyForm, ...] = ("stored", "float32", "bfloat16", "int8")
    dense: tuple[int, ...] = (16 * 1024, 64 * 1024)
    repeats: int = 9


FULL = Sizes()
QUICK = Sizes(
    scale=(8_000, 32_000), planted=8, sample=96, real=20_000, append=(8_000, 32_000), added=20,
    chunks=2_000, width=64, heads=2, vectors=2_000, dense=(512, 1024), repeats=3,
)  # fmt: skip
