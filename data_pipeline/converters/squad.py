"""squad: data -> paragraphs -> qas, as SQuAD, CMRC 2018, DRCD and DuReader-robust have it."""

from __future__ import annotations

from functools import partial

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.inputs import Record, each_record, list_records


@each_record(partial(list_records, key="data"))
def squad(builder: Builder, split: str, article: Record) -> None:
    """Every paragraph is a passage. Questions that are marked impossible are left out.

    Raises DataError for a broken record, as for a question without answers that is not marked.
    """
    title = article.text("title", "")
    for paragraph in article.records("paragraphs"):
        passage = builder.passage(paragraph.where, title, paragraph.text("context"))
        for qa in paragraph.records("qas"):
            _add_question(builder, split, qa, passage)


def _add_question(builder: Builder, split: str, qa: Record, passage: str | None) -> None:
    if qa.flag("is_impossible", False):
        return builder.leave_out("unanswerable questions")
    answers = [answer.text("text") for answer in qa.records("answers")]
    if not answers:
        raise qa.error('"answers" is empty: give one, or mark the question with is_impossible')
    builder.question(
        qa.where, split, qa.text("question"), [passage], id=qa.id("id"), answers=answers
    )
