"""`msa bench memory`: how long a memory takes to open, to search, to extend, beside its floor.

Banks of 1M to 100M tokens, real text, one layer of the 4B geometry, additions, and two peers: FAISS
and dense attention. Memory is measured in processes of their own.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msa_train.bench.sizes import Sizes
from msa_train.errors import ConfigError

if TYPE_CHECKING:
    from msa_train.bench.banks import Load

PARTS = ("scale", "real", "layer_4b", "append", "faiss", "dense_ttft")
WITHOUT_MODEL = ("layer_4b", "faiss")


def known_parts(names: Sequence[str]) -> tuple[str, ...]:
    """Raises ConfigError for a part that there is not."""
    for name in names:
        if name not in PARTS:
            raise ConfigError(f"parts names {name!r}: give some of {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in names)


def measure(
    load: Load,
    sizes: Sizes,
    corpus: Path | None = None,
    parts: Sequence[str] = PARTS,
) -> dict[str, Any]:
    """The parts asked for, by name, and the machine.

    load: brings model, tokenizer and fingerprint; called in other processes, so it must pickle.
    corpus: folder of JSON lines (None: pydocs). Raises ConfigError for an unknown part.
    """
    import torch

    from msa_train.bench.memory import banks, layer, peers

    runs: dict[str, Callable[[], Any]] = {
        "scale": lambda: banks.scale(load, sizes),
        "real": lambda: banks.real(load, sizes, corpus),
        "layer_4b": lambda: layer.layer_4b(sizes),
        "append": lambda: banks.append(load, sizes),
        "faiss": lambda: peers.faiss_flat(sizes),
        "dense_ttft": lambda: peers.dense_ttft(load, sizes),
    }
    found = {part: runs[part]() for part in known_parts(parts)}
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
