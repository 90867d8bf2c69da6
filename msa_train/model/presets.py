"""Geometries known by name."""

from __future__ import annotations

from msa_train.model.config import ModelConfig, RouterConfig

# Qwen3-4B-Instruct-2507 with routers in layers 18..35: the publication's model.
PRESETS = {
    "4b": ModelConfig(
        layers=36, hidden=2560, heads=32, kv_heads=8, head_dim=128, ffn=9728, vocab_size=151_936,
        rope_theta=5e6, tie_embeddings=True, router=RouterConfig(top_k=16, chunk_size=64),
    ),
}  # fmt: skip
