"""A tiny model for the benchmarks of memories, and sizes to go with it."""

from msa_train.bench.memory.sizes import Sizes
from tests.memory.tiny import FINGERPRINT, tiny_model, tiny_tokenizer

CHUNK = 128  # a needle in the tiny tokenizer's short tokens
SIZES = Sizes(
    scale=(40 * CHUNK, 160 * CHUNK), planted=4, sample=40, real=500, append=(4000, 8000), added=6,
    chunks=300, width=16, heads=2, queries=(3, 5), vectors=500, dense=(60, 90), repeats=1,
)  # fmt: skip


def load():
    return tiny_model(chunk_size=CHUNK), tiny_tokenizer(), FINGERPRINT
