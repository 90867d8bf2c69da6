"""dureader: the jsonl files of DuReader 2.0, raw or preprocessed."""

from __future__ import annotations

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.inputs import Record, each_record, line_records


@each_record(line_records)
def dureader(builder: Builder, split: str, record: Record) -> None:
    """Selected documents, and those of answer_docs, are positives; the others negatives.

    Raises DataError for a broken record.
    """
    ids, selected = [], set()
    for place, document in enumerate(record.records("documents")):
        text = "\n".join(document.texts("paragraphs"))
        ids.append(builder.passage(document.where, document.text("title", ""), text))
        if document.flag("is_selected", False):
            selected.add(place)
    for place in record.list("answer_docs", []):
        if type(place) is not int or not 0 <= place < len(ids):
            raise record.error(
                f'"answer_docs" names {place!r}, but there are {len(ids)} documents: give places '
                "in that list"
            )
        selected.add(place)
    builder.question(
        record.where,
        split,
        record.text("question"),
        [ids[place] for place in sorted(selected)],
        id=record.id("question_id"),
        answers=record.texts("answers"),
        negatives=ids,
        any_of=True,
    )
