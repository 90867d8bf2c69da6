"""sentence_transformers: pairs, triplets and sets of its published embedding training data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.converters.builder import Builder, JudgedQueries
from data_pipeline.converters.inputs import Record, files_by_split
from data_pipeline.errors import DataError
from data_pipeline.jsonl import read_values


def sentence_transformers(builder: Builder, inputs: Sequence[Path], splits: Sequence[str]) -> None:
    """Equal anchors become one question with all their positives; there are no answers.

    Lines are [anchor, positive], [anchor, positive, negative], {"query", "pos", "neg"} or
    {"set": [...]}, whose first text is the anchor of the others. Raises DataError for another.
    """
    for split, paths in files_by_split(inputs, splits).items():
        found = JudgedQueries()
        for path in paths:
            for where, line in read_values(path):
                anchor, positives, negatives = _read(where, line)
                query = found.get(anchor, where)
                for text in positives:
                    query.positives[builder.passage(where, "", text)] = None
                for text in negatives:
                    query.negatives[builder.passage(where, "", text)] = None
        found.write(builder, split)


def _read(where: str, line: Any) -> tuple[str, list[str], list[str]]:
    """(anchor, positives, negatives) of a line."""
    match line:
        case [str(anchor), str(positive)]:
            return anchor, [positive], []
        case [str(anchor), str(positive), str(negative)]:
            return anchor, [positive], [negative]
        case {"set": [str(anchor), str(), *_]}:
            return anchor, Record(line, where).texts("set")[1:], []
        case {"query": _}:
            record = Record(line, where)
            return record.text("query"), _texts(record, "pos"), _texts(record, "neg", [])
    raise DataError(
        f'{where}: give [anchor, positive], [anchor, positive, negative], {{"query", "pos", '
        '"neg"} or {"set": [two texts or more]}'
    )


def _texts(record: Record, key: str, *default: Any) -> list[str]:
    """A list of texts, for which one text may stand."""
    value = record.data.get(key)
    return [value] if isinstance(value, str) else record.texts(key, *default)
