"""The tokenizer of a folder, whichever of the two kinds it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.tokenizer.base import METADATA_FILE, Tokenizer


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """The tokenizer of a shard set, an export or a backbone.

    Raises DataError when a file is missing, of another kind, or was changed.
    """
    path = Path(directory) / METADATA_FILE
    try:
        metadata = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            f"no tokenizer in {directory}: {path} is missing; give the folder of a shard set, "
            "of an export or of a backbone"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    return _kind_of(metadata, path).from_folder(Path(directory), metadata)


def _kind_of(metadata: Any, path: Path) -> type[Tokenizer]:
    """The class for a METADATA_FILE; only its own library is imported."""
    if isinstance(metadata, dict) and "kind" in metadata:
        from data_pipeline.tokenizer.sentencepiece import KIND, SentencePieceTokenizer

        if metadata["kind"] == KIND:
            return SentencePieceTokenizer
        raise DataError(f"{path} is of kind {metadata['kind']!r}, not {KIND!r}")
    if isinstance(metadata, dict) and "added_tokens" in metadata:
        from data_pipeline.tokenizer.huggingface import HuggingFaceTokenizer

        return HuggingFaceTokenizer
    raise DataError(f"{path} is no tokenizer of a kind that is known here")
