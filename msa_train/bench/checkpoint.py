"""What a checkpoint costs a run, waited for and written beside it, and what a restart costs:
`msa bench checkpoint`.

Runs of `msa train` on two ranks with random weights; their own metrics are what is told. The floor
is as many bytes written to the same disk, and hashed, by one process that does nothing else.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from data_pipeline import files
from data_pipeline.shards.build import build_shards
from msa_train import checkpoint_folders
from msa_train.bench.runner import log
from msa_train.config import load_config
from msa_train.errors import RankError

SIZES = {
    "toy": {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 32,
            "vocab_size": 1200},
    "135m": {"layers": 30, "hidden": 576, "heads": 9, "kv_heads": 3, "head_dim": 64, "ffn": 1536,
             "vocab_size": 49_152, "tie_embeddings": True},  # SmolLM2-135M
}  # fmt: skip
RANKS = 2
EVERY, STEPS = 3, 7  # checkpoints after steps 3 and 6, and a last one
_BLOCK = 64 << 20


def settings(output: Path, size: str, stages: str, **more: Any) -> list[str]:
    """Command-line settings of a run on needles. more: of training."""
    plain: dict[str, Any] = {f"model.{name}": value for name, value in SIZES[size].items()}
    plain |= {
        "output": output, "model.router.top_k": 3, "model.router.chunk_size": 16,
        "data.tokenizer.vocab_size": 1200, "data.tokenizer.needle_texts": 400,
        "data.tokenizer.word_repeats": 40, "data.niah.key_words": 2,
        **{f"data.niah.{words}": 24 for words in ("adjectives", "nouns", "values")},
        "data.banks": "{niah: {documents: 4, contexts: 2}, pydocs: {weight: 0}}",
        "stages": stages, "training.log_every": 1, "training.wandb.mode": "off",
        "training.device": "cpu",
    }  # fmt: skip
    plain |= {f"training.{name}": value for name, value in more.items()}
    return [part for key, value in plain.items() for part in (f"--{key}", str(value))]


def prepare(arguments: Sequence[str]) -> Path:
    """The run's folder, with its settings and its shards."""
    config = load_config(list(arguments))
    config.path.mkdir(parents=True)
    config.save(config.path / "config.yaml")
    build_shards(config.corpus, config.path / "shards", workers=1)
    return config.path


def train(output: Path, *flags: str) -> subprocess.Popen:
    """`msa train` at work on what `prepare` made; what it prints goes to OUTPUT/log."""
    command = [
        sys.executable, "-m", "msa_train.cli", "train", "--ranks", str(RANKS),
        "--config", str(output / "config.yaml"), *flags,
    ]  # fmt: skip
    with (output / "log").open("a") as said:
        return subprocess.Popen(command, stdout=said, stderr=said)


def rows_of(output: Path) -> list[dict[str, Any]]:
    """Its metrics so far; a line that is being written is left out."""
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def measure(size: str = "135m", zero_stage: int = 1, folder: Path | None = None) -> dict[str, Any]:
    """folder: on the disk that is measured (None: that of temporary files)."""
    stages = f"[{{name: main, steps: {STEPS}, lr: 1e-4, router_weight: 1}}]"
    with tempfile.TemporaryDirectory(prefix="msa-bench-", dir=folder) as made:
        runs = {}
        for how in ("plain", "async"):
            log(f"checkpoint: {size}, {how}")
            given = settings(
                Path(made) / how, size, stages, zero_stage=zero_stage, checkpoint_every=EVERY,
                async_save=how == "async",
            )  # fmt: skip
            runs[how] = output = prepare(given)
            _finished(train(output), output)
            if how == "plain":
                shutil.rmtree(output / "checkpoints")  # room for the other's
        last = checkpoint_folders.newest_good(runs["async"] / "checkpoints")
        size_mb = sum(path.stat().st_size for path in last.iterdir() if path.is_file()) / 1e6
        log("checkpoint: the floor")
        floor = _floor(Path(made) / "floor", size_mb)
        saving = [_saving(how, rows_of(output), size_mb, floor) for how, output in runs.items()]
        log("checkpoint: restart")
        return {
            "floor": {"checkpoint_mb": round(size_mb, 1), **floor},
            "saving": saving,
            "restart": _restart(runs["async"], last),
        }


def _finished(run: subprocess.Popen, output: Path) -> None:
    if code := run.wait():
        tail = (output / "log").read_text()[-2000:]
        raise RankError(f"bench: msa train ended with exit code {code}:\n{tail}")


def _floor(path: Path, size_mb: float) -> dict[str, float]:
    """A file of as many bytes: written, hashed and on the disk."""
    block = torch.randint(256, (_BLOCK,), dtype=torch.uint8).numpy()
    left, began = round(size_mb * 1e6), time.perf_counter()
    with files.NewFile(path) as file:
        while left > 0:
            file.write(block[: min(left, _BLOCK)])
            left -= _BLOCK
    seconds = time.perf_counter() - began
    path.unlink()
    return {"seconds": round(seconds, 2), "mb_per_s": round(size_mb / seconds, 1)}


def _saving(
    how: str, rows: Sequence[dict[str, Any]], size_mb: float, floor: dict[str, float]
) -> dict[str, Any]:
    """Of the checkpoints before the last; the first step, which warms up, is left out."""
    stalls = [row["checkpoint_stall_s"] for row in rows if row["checkpoint_stall_s"]]
    sealed = [row["checkpoint_s"] for row in rows if row["checkpoint_s"]]
    steps: dict[bool, list[float]] = {False: [], True: []}
    open_ = 0  # checkpoints that are being written
    for row in rows[1:]:
        open_ += bool(row["checkpoint_stall_s"])
        open_ -= bool(row["checkpoint_s"])  # told with the step after the one it ended in
        steps[open_ > 0].append(row["step_ms"])
    beside = round(median(steps[True]), 1) if steps[True] else None
    return {
        "mode": how,
        "checkpoints": len(stalls),
        "stall_s": round(median(stalls), 2),
        "sealed_s": round(median(sealed), 2) if sealed else None,
        "mb_per_s": round(size_mb / median(sealed), 1) if sealed else None,
        "floor_mb_per_s": floor["mb_per_s"],
        "step_ms": round(median(steps[False]), 1) if steps[False] else None,
        "step_ms_while_writing": beside,
    }


def _restart(output: Path, last: Path) -> dict[str, Any]:
    """From `msa train --resume` to the end of a first step, on the last but one checkpoint."""
    shutil.rmtree(last)
    began = time.time()
    run = train(output, "--resume")
    _finished(run, output)
    row = rows_of(output)[-1]
    parts = {name.removeprefix("start/"): v for name, v in row.items() if name[:6] == "start/"}
    found = {name: round(seconds, 2) for name, seconds in parts.items()}
    return found | {"first_step_after_s": round(sum(parts.values()), 2),
                    "whole_run_s": round(time.time() - began, 2)}  # fmt: skip
