"""squad: data -> paragraphs -> qas, as SQuAD, CMRC 2018, DRCD and DuReader-robust have it.

Or the rows of Hugging Face's copies: a question with its context each.
"""

from __future__ import annotations

from functools import partial

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.inputs import Record, each_record, rows


@each_record(partial(rows, key="data"))
def squad(builder: Builder, split: str, article: Record) -> None:
    """Every paragraph is a passage. Questions that are marked impossible are left out.

    Raises DataError for a broken record, as for a question without answers that is not marked;
    in rows that is the mark.
    """
    title = article.text("title", "")
    if "context" in article.data:
        return _add_row(builder, split, title, article)
    for paragraph in article.records("paragraphs"):
        passage = builder.passage(paragraph.where, title, paragraph.text("context"))
        for qa in paragraph.records("qas"):
            _add_question(builder, split, qa, passage)


def _add_row(builder: Builder, split: str, title: str, row: Record) -> None:
    passage = builder.passage(row.where, title, row.text("context"))
    answers = row.record("answers").texts("text")
    if not answers:
        return builder.leave_out("unanswerable questions")
    builder.question(
        row.where, split, row.text("question"), [passage], id=row.id("id"), answers=answers
    )


def _add_question(builder: Builder, split: str, qa: Record, passage: str | None) -> None:
    if qa.flag("is_impossible", False):
        return builder.leave_out("unanswerable questions")
    answers = [answer.text("text") for answer in qa.records("answers")]
    if not answers:
        raise qa.error('"answers" is empty: give one, or mark the question with is_impossible')
    builder.question(
        qa.where, split, qa.text("question"), [passage], id=qa.id("id"), answers=answers
    )
