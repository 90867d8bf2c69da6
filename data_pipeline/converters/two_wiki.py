"""2wiki: the json files of 2WikiMultihopQA."""

from __future__ import annotations

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.inputs import Record, each_record, rows
from data_pipeline.converters.matching import entity
from data_pipeline.converters.multihop import add_multihop

_STEPS = {"comparison": 1, "compositional": 2, "inference": 2, "bridge_comparison": 2}


@each_record(rows)
def two_wiki(builder: Builder, split: str, record: Record) -> None:
    """A comparison is one step; the triples of `evidences` tell the two steps of the others.

    Raises DataError for a broken record.
    """
    add_multihop(builder, split, record, _steps)


def _steps(record: Record, positives: dict[str, str]) -> list[list[str]]:
    kind = record.text("type").replace("-", "_")
    if kind not in _STEPS:
        raise record.error(f'"type" is {kind!r}: give {", ".join(_STEPS)}')
    triples = _triples(record)
    if kind == "comparison":
        return [list(positives)]
    titles = {entity(title): title for title in positives}
    steps = [[titles.get(subject) for subject in step] for step in _chain(triples)]
    named = [title for step in steps for title in step]
    if len(steps) != _STEPS[kind] or len(titles) < len(positives) or None in named:
        return []
    return steps


def _triples(record: Record) -> list[tuple[str, str]]:
    """(subject, object) of the evidences, as they are compared with titles."""
    found = []
    for place, triple in enumerate(record.list("evidences")):
        match triple:
            case [str(subject), str(), str(object_)]:
                found.append((entity(subject), entity(object_)))
            case _:
                raise record.error(
                    f'"evidences[{place}]" is wrong: give [subject, relation, object]'
                )
    return found


def _chain(triples: list[tuple[str, str]]) -> list[list[str]]:
    """Subjects in the order in which they can be found, step by step.

    First those that no other triple leads to, then those that only these lead to, and so on; []
    when they go round in a circle.
    """
    left = list(dict.fromkeys(subject for subject, _ in triples))
    steps = []
    while left:
        led_to = {object_ for subject, object_ in triples if subject in left and object_ != subject}
        step = [subject for subject in left if subject not in led_to]
        if not step:
            return []
        steps.append(step)
        left = [subject for subject in left if subject in led_to]
    return steps
