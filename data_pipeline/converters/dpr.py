"""dpr: the retriever training files of DPR."""

from __future__ import annotations

from typing import Any

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.inputs import Record, each_record, list_records


@each_record(list_records)
def dpr(builder: Builder, split: str, record: Record) -> None:
    """Positive contexts, and as negatives the hard ones before the others.

    Raises DataError for a broken record.
    """
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
