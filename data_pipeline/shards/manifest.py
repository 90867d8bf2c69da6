"""What stands beside the shards: a manifest, and an index of every sample.

DIR/manifest.json          settings, tokenizer fingerprint, counts, shards
DIR/index.npy              one row for each sample, in the order of the curriculum
DIR/tokenizer/             the tokenizer of the corpus
DIR/shard-000000.tar ...   standard WebDataset tars of JSON samples
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import files
from data_pipeline.errors import DataError
from data_pipeline.settings import TrainingCorpus, differences

FORMAT = "msa-shards-2"
_NAMED = 3  # settings that an error names
_SETTINGS = {"batch_samples": "training.batch_samples"}  # where a run's YAML has another name
MANIFEST_FILE, INDEX_FILE, TOKENIZER_FOLDER = "manifest.json", "index.npy", "tokenizer"
INDEX_DTYPE = np.dtype(
    [("shard", "<u4"), ("stage", "<u4"), ("offset", "<u8"), ("size", "<u8"), ("crc32", "<u4")]
)


def shard_name(shard: int) -> str:
    return f"shard-{shard:06d}.tar"


@dataclass(frozen=True)
class StageCounts:
    """One stage: exact counts, and mean tokens per sample over `measured` of its samples.

    epochs: how often the samples are read.
    """

    samples: int
    epochs: int
    documents: int
    contexts: int
    measured: int
    document_tokens: float
    context_tokens: float


@dataclass(frozen=True)
class ShardManifest:
    """Counts and origins of a shard set. shards: size in bytes of each."""

    settings: dict[str, Any]
    tokenizer: str  # fingerprint
    samples: int
    shards: tuple[int, ...]
    stages: tuple[StageCounts, ...]
    batch_samples: int  # samples of a step

    def matches(self, corpus: TrainingCorpus) -> bool:
        """Whether building `corpus` would make these very shards again."""
        return self.settings == corpus.settings()

    def differences(self, corpus: TrainingCorpus) -> str:
        """Which settings these shards were built from otherwise, in words: a few of them."""
        changed = differences(self.settings, corpus.settings())
        # Stages last: how many samples they have follows from training.batch_samples.
        found = sorted(changed, key=lambda each: each[0].startswith("stages"))
        rest = f", and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        told = [
            f"{_SETTINGS.get(key, key)} ({_short(then)}, now {_short(now)})"
            for key, (then, now) in found[:_NAMED]
        ]
        return ", ".join(told) + rest

    def begins(self, corpus: TrainingCorpus) -> bool:
        """Whether `corpus` is that of these shards, with longer stages or more of them."""
        now, then = corpus.settings(), self.settings
        stages, had = now.pop("stages"), then["stages"]
        if now != {key: value for key, value in then.items() if key != "stages"}:
            return False
        pairs = list(zip(had, stages, strict=False))
        return len(pairs) == len(had) and all(starmap(_grows, pairs))

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of each stage."""
        return tuple(stage.samples * stage.epochs // self.batch_samples for stage in self.stages)

    def save(self, directory: Path) -> None:
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2)
        files.replace_file(directory / MANIFEST_FILE, text + "\n")

    @classmethod
    def load(cls, directory: Path | str) -> ShardManifest:
        """Raises DataError when there is no manifest or it is of another format."""
        path = Path(directory) / MANIFEST_FILE
        try:
            data = json.loads(path.read_text())
            if data.pop("format", None) != FORMAT:
                raise DataError(
                    f"{path} is not of format {FORMAT}: delete {directory} and build the shards "
                    "again"
                )
            data["stages"] = tuple(StageCounts(**stage) for stage in data["stages"])
            data["shards"] = tuple(data["shards"])
            return cls(**data)
        except FileNotFoundError as error:
            raise DataError(
                f"no shards in {directory}: {path} is missing; build them (msa data build)"
            ) from error
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise DataError(
                f"{path} is broken ({error!r}): delete {directory} and build the shards again"
            ) from error


def _short(value: Any) -> str:
    return textwrap.shorten(str(value), 60, placeholder=" ...")


def _grows(had: dict[str, Any], stage: dict[str, Any]) -> bool:
    """Whether a stage, as TrainingCorpus.settings gives it, is another as it was or longer.

    samples are those of an epoch, tokens those of all.
    """
    if had["data"] != stage["data"] or had["epochs"] > stage["epochs"]:
        return False
    if had["tokens"] is None:
        return stage["tokens"] is None and had["samples"] <= stage["samples"]
    if stage["tokens"] is None:
        return False
    return had["tokens"] * stage["epochs"] <= stage["tokens"] * had["epochs"]


def load_index(directory: Path | str, manifest: ShardManifest) -> np.ndarray:
    """[samples] rows of INDEX_DTYPE, memory-mapped, stages ascending."""
    path = Path(directory) / INDEX_FILE
    try:
        index = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): build the shards again") from error
    if index.dtype != INDEX_DTYPE or len(index) != manifest.samples:
        raise DataError(
            f"{path} has {len(index)} rows of {index.dtype}, but {MANIFEST_FILE} says "
            f"{manifest.samples} samples: build the shards again"
        )
    return index
