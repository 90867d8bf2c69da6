"""`msa bench memory`: how long a memory takes to open, to search, to extend, beside its floor.

Banks of 1M to 100M tokens, the same with pooled queries, real text, one layer of the 4B geometry,
additions, and two peers: FAISS and dense attention. Every row is measured in a process of its own.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data_pipeline.settings import DataConfig
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.sentencepiece import train_sentencepiece
from data_pipeline.tokenizer_training import corpus_texts
from msa_train.bench.memory import banks, layer, peers, pooled
from msa_train.bench.memory.banks import Load
from msa_train.bench.memory.sizes import FULL, QUICK, Sizes
from msa_train.bench.train import MODEL
from msa_train.errors import ConfigError
from msa_train.interop.export import COMPUTE, ON_CPU, Placement, load_export
from msa_train.model.decoder import MSADecoder
from msa_train.model.weights import initial_reader, weight_shapes

PARTS = ("scale", "pooled", "real", "layer_4b", "append", "faiss", "dense_ttft")
_WITHOUT_MODEL = {"layer_4b", "faiss"}


def measure(
    export: Path | None = None,
    corpus: Path | None = None,
    quick: bool = False,
    parts: Sequence[str] = (),
    placed: Placement = ON_CPU,
) -> dict[str, Any]:
    """The parts (none: all) with an exported model; without one, the quickstart's geometry with
    random weights, and a tokenizer trained on the spot.

    corpus: folder of JSON lines (None: pydocs). quick: tiny sizes. placed: where the model computes
    and searches; the parts without one are the CPU's. Raises ConfigError for an unknown part.
    """
    chosen = known_parts(parts or PARTS)
    if export is not None:
        load_export(export)  # what is wrong with it is said at once
        load = partial(_exported, export, placed)
    else:
        tokenizer = None if set(chosen) <= _WITHOUT_MODEL else _new_tokenizer()
        load = partial(_untrained, tokenizer, placed)
    found = measure_parts(load, QUICK if quick else FULL, corpus, chosen)
    found["machine"]["device"] = placed.device
    return {**found, "model": str(export) if export else "random weights"}


def known_parts(names: Sequence[str]) -> tuple[str, ...]:
    """In the order they are measured. Raises ConfigError for an unknown part."""
    for name in names:
        if name not in PARTS:
            raise ConfigError(f"parts names {name!r}: give some of {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in names)


def measure_parts(
    load: Load, sizes: Sizes, corpus: Path | None, parts: Sequence[str]
) -> dict[str, Any]:
    """Parts by name, and the machine. load: brings model, tokenizer and fingerprint; called in
    other processes, so it must pickle."""
    runs: dict[str, Callable[[], Any]] = {
        "scale": lambda: banks.scale(load, sizes),
        "pooled": lambda: pooled.pooled(load, sizes),
        "real": lambda: banks.real(load, sizes, corpus),
        "layer_4b": lambda: layer.layer_4b(sizes),
        "append": lambda: banks.append(load, sizes),
        "faiss": lambda: peers.faiss_flat(sizes),
        "dense_ttft": lambda: peers.dense_ttft(load, sizes),
    }
    found = {part: runs[part]() for part in parts}
    if "scale" in found:
        found["linearity"] = banks.linearity(found["scale"])
    found["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }
    return found


def _exported(export: Path, placed: Placement) -> tuple[MSADecoder, Tokenizer, dict[str, str]]:
    loaded = load_export(export, placed)
    return loaded.model, loaded.tokenizer, loaded.fingerprint


def _untrained(
    tokenizer: Tokenizer | None, placed: Placement
) -> tuple[MSADecoder, Tokenizer, dict[str, str]]:
    read = initial_reader(MODEL, seed=0)
    weights = {name: read(name) for name in weight_shapes(MODEL)}
    model = MSADecoder(MODEL).load_published(weights)
    model = model.to(placed.device, COMPUTE[placed.compute])
    return model.eval().requires_grad_(False), tokenizer, {"weights": "untrained"}


def _new_tokenizer() -> Tokenizer:
    return train_sentencepiece(corpus_texts(DataConfig(), ("niah", "pydocs")), MODEL.vocab_size)
