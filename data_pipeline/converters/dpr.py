"""dpr: the retriever training files of DPR."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.inputs import Record, files_with_splits, list_records


def dpr(builder: Builder, inputs: Sequence[Path], splits: Sequence[str]) -> None:
    """Positive contexts, and as negatives the hard ones before the others.

    Raises DataError for a broken record.
    """
    for path, split in files_with_splits(inputs, splits):
        for record in list_records(path):
            builder.question(
                record.where,
                split,
                record.text("question"),
                _contexts(builder, record, "positive_ctxs"),
                answers=record.texts("answers"),
                any_of=True,
                negatives=[
                    *_contexts(builder, record, "hard_negative_ctxs", []),
                    *_contexts(builder, record, "negative_ctxs", []),
                ],
            )


def _contexts(builder: Builder, record: Record, key: str, *default: Any) -> list[str | None]:
    return [
        builder.passage(
            context.where,
            context.text("title", ""),
            context.text("text"),
            context.id("passage_id", None) or context.id("psg_id", None),
        )
        for context in record.records(key, *default)
    ]
