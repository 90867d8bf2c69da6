"""What a conversion is given: files with the splits they belong to, or one folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import DataError

DEFAULT_SPLIT = "train"


def files_with_splits(inputs: Sequence[Path], splits: Sequence[str]) -> list[tuple[Path, str]]:
    """(file, split) pairs: one split for all files, or one for each of them in their order.

    Raises DataError when there are neither one split nor as many as files.
    """
    splits = splits or (DEFAULT_SPLIT,)
    if len(splits) == 1:
        return [(path, splits[0]) for path in inputs]
    if len(splits) != len(inputs):
        raise DataError(
            f"{len(splits)} splits ({', '.join(splits)}) for {len(inputs)} files: give one split, "
            "or one for each file"
        )
    return list(zip(inputs, splits, strict=True))


def one_folder(inputs: Sequence[Path], holds: str) -> Path:
    """The one input, a folder. holds: what it must hold, for the message. Raises DataError."""
    if len(inputs) != 1 or not inputs[0].is_dir():
        raise DataError(f"{', '.join(map(str, inputs))}: give one folder with {holds}")
    return inputs[0]
