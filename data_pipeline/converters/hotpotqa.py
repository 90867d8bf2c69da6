"""hotpotqa: the json files of HotpotQA."""

from __future__ import annotations

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.inputs import Record, each_record, rows
from data_pipeline.converters.matching import entity, words
from data_pipeline.converters.multihop import add_multihop


@each_record(rows)
def hotpotqa(builder: Builder, split: str, record: Record) -> None:
    """A comparison is one step; a bridge has two where it is plain which passage comes first.

    Raises DataError for a broken record.
    """
    add_multihop(builder, split, record, _steps)


def _steps(record: Record, positives: dict[str, str]) -> list[list[str]]:
    kind = record.text("type")
    if kind == "comparison":
        return [list(positives)]
    if kind != "bridge":
        raise record.error(f'"type" is {kind!r}: give bridge or comparison')
    return _bridge(record, positives)


def _bridge(record: Record, positives: dict[str, str]) -> list[list[str]]:
    """The passage that the question names comes first, the one that holds the answer last.

    [] when both say nothing, or say different things.
    """
    if len(positives) != 2:
        return []
    question, answer = words(record.text("question")), words(record.text("answer"))
    named = [title for title in positives if entity(title).strip() and entity(title) in question]
    holds = [
        title
        for title, text in positives.items()
        if answer.strip() and answer in words(f"{title} {text}")
    ]
    if answer.strip() in ("yes", "no"):  # such an answer is not read in a passage
        holds = []
    firsts = {named[0]} if len(named) == 1 else set()
    if len(holds) == 1:
        firsts |= positives.keys() - set(holds)
    if len(firsts) != 1:
        return []
    (first,) = firsts
    return [[first], [title for title in positives if title != first]]
