"""hotpotqa and 2wiki: a context of titled paragraphs, and facts that name some of the titles.

In the rows of Hugging Face's copies lists of pairs are objects of two lists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.inputs import Record

StepsOf = Callable[[Record, dict[str, str]], list[list[str]]]


def add_multihop(builder: Builder, split: str, record: Record, steps_of: StepsOf) -> None:
    """Paragraphs become passages, those of the supporting facts positives, others negatives.

    steps_of: (record, {title: text} of the positives) -> titles of each step, [] if not known.
    Raises DataError for a broken record.
    """
    paragraphs = _paragraphs(record)
    ids = [builder.passage(record.where, title, text) for title, text in paragraphs]
    first: dict[str, int] = {}
    for place, (title, _) in enumerate(paragraphs):
        first.setdefault(title, place)
    titles = _supporting_titles(record)
    if not first.keys() >= set(titles):  # the retrieved contexts of HotpotQA's fullwiki setting
        return builder.leave_out("questions whose supporting paragraphs are not in their context")
    steps = steps_of(record, {title: paragraphs[first[title]][1] for title in titles})
    builder.question(
        record.where,
        split,
        record.text("question"),
        [ids[first[title]] for title in titles],
        id=record.id("_id", None) or record.id("id" if "id" in record.data else "_id"),
        answers=[record.text("answer")],
        steps=[[ids[first[title]] for title in step] for step in steps],
        negatives=ids,
    )


def _paragraphs(record: Record) -> list[tuple[str, str]]:
    found = []
    for place, paragraph in enumerate(_pairs(record, "context", "title", "sentences")):
        match paragraph:
            case [str(title), [*sentences]] if all(isinstance(s, str) for s in sentences):
                found.append((title, " ".join(s.strip() for s in sentences if s.strip())))
            case _:
                raise record.error(f'"context[{place}]" is wrong: give [title, [sentence, ...]]')
    return found


def _pairs(record: Record, key: str, first: str, second: str) -> list[Any]:
    """A list of pairs, also where an object holds the first of each and the second of each."""
    if not isinstance(record.data.get(key), dict):
        return record.list(key)
    columns = record.record(key)
    firsts, seconds = columns.list(first), columns.list(second)
    if len(firsts) != len(seconds):
        raise columns.error(f'"{first}" has {len(firsts)}, "{second}" {len(seconds)}: give as many')
    return [list(pair) for pair in zip(firsts, seconds, strict=True)]


def _supporting_titles(record: Record) -> list[str]:
    titles: dict[str, None] = {}
    for place, fact in enumerate(_pairs(record, "supporting_facts", "title", "sent_id")):
        match fact:
            case [str(title), int()]:
                titles[title] = None
            case _:
                raise record.error(
                    f'"supporting_facts[{place}]" is wrong: give [title, number of the sentence]'
                )
    return list(titles)
