"""How much `msa bench gpu` measures: a card's worth, or a toy's on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, field

from msa_train.model.config import PRESETS, ModelConfig, RouterConfig

SMALL = ModelConfig(  # Qwen3-0.6B
    layers=28, hidden=1024, heads=16, kv_heads=8, head_dim=128, ffn=3072, vocab_size=151_936,
    rope_theta=1e6, tie_embeddings=True, router=RouterConfig(top_k=16, chunk_size=64),
)  # fmt: skip
_TOY_LARGE = ModelConfig(
    layers=4, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab_size=512,
    router=RouterConfig(top_k=4, chunk_size=8),
)  # fmt: skip
_TOY_SMALL = ModelConfig(
    layers=2, hidden=32, heads=2, kv_heads=2, head_dim=16, ffn=64, vocab_size=256,
    router=RouterConfig(top_k=4, chunk_size=8),
)  # fmt: skip
GEOMETRIES = ("4B", "0.6B")  # of `BatterySizes.geometry`


@dataclass(frozen=True)
class BatterySizes:
    """large, small: geometries, called 4B and 0.6B. chunks: of the memory, one to a document.
    tokens: of a question that is routed. repeats: timed runs. segments, questions: of the memory
    that is asked; question_tokens: of each; decoded: tokens that are written. document_tokens: of
    documents that are encoded and trained on; encoded: tokens at once. attended: lengths of
    documents that attend to themselves, `together` tokens in all; reading: contexts, tokens of each
    and chunks that each reads. trained: memory tokens of a step; contexts: that ask it; layers: of
    the large geometry, as many as a step fits beside. floor: bytes and side of what the floor is
    measured by (None: as in every benchmark)."""

    toy: bool = False
    large: ModelConfig = PRESETS["4b"]
    small: ModelConfig = field(default_factory=lambda: SMALL)
    chunks: int = 1_562_500
    tokens: tuple[int, ...] = (1, 16, 32, 64)
    repeats: int = 9
    segments: tuple[int, ...] = (1, 12, 96)
    questions: tuple[int, ...] = (1, 32)
    question_tokens: int = 32
    decoded: int = 64
    document_tokens: int = 512
    encoded: int = 1 << 16
    attended: tuple[int, ...] = (64, 512, 4096)
    together: int = 1 << 16
    reading: tuple[int, int, int] = (32, 64, 256)
    trained: tuple[int, ...] = (1 << 14, 1 << 16)
    contexts: int = 64
    layers: int = 8
    floor: tuple[int, int] | None = None

    def geometry(self, name: str) -> ModelConfig:
        return self.large if name == "4B" else self.small


FULL = BatterySizes()
TOY = BatterySizes(
    toy=True, large=_TOY_LARGE, small=_TOY_SMALL, chunks=2_000, tokens=(1, 5), repeats=1,
    segments=(1, 5), questions=(1, 3), question_tokens=6, decoded=4, document_tokens=24,
    encoded=240, attended=(16, 48), together=96, reading=(2, 6, 8), trained=(96, 192), contexts=4,
    layers=2, floor=(1 << 20, 128),
)  # fmt: skip
