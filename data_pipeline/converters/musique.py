"""musique: the jsonl files of MuSiQue, answerable and full."""

from __future__ import annotations

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.inputs import Record, each_record, line_records


@each_record(line_records)
def musique(builder: Builder, split: str, record: Record) -> None:
    """Supporting paragraphs are positives, in the steps of the question's decomposition.

    Questions marked unanswerable are left out; their paragraphs stay. Raises DataError for a
    broken record.
    """
    ids: dict[int, str | None] = {}
    positives = []
    for paragraph in record.records("paragraphs"):
        index = paragraph.number("idx")
        if index in ids:
            raise paragraph.error(f'"idx" {index} is that of another paragraph: number them anew')
        ids[index] = builder.passage(
            paragraph.where, paragraph.text("title"), paragraph.text("paragraph_text")
        )
        if paragraph.flag("is_supporting"):
            positives.append(ids[index])
    if not record.flag("answerable"):
        return builder.leave_out("unanswerable questions")
    builder.question(
        record.where,
        split,
        record.text("question"),
        positives,
        id=record.id("id"),
        answers=[record.text("answer"), *record.texts("answer_aliases")],
        steps=[[_support(hop, ids)] for hop in record.records("question_decomposition")],
        negatives=ids.values(),
    )


def _support(hop: Record, ids: dict[int, str | None]) -> str | None:
    index = hop.number("paragraph_support_idx")
    if index not in ids:
        raise hop.error(f'"paragraph_support_idx" is {index}: give the idx of a paragraph')
    return ids[index]
