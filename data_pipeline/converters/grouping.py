"""Gathers what the lines of a file say of one query: its positives and negatives."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_pipeline.converters.builder import Builder


@dataclass
class JudgedQuery:
    """A query, where it was first named, and the passages named for it (None: an empty one)."""

    where: str
    positives: dict[str | None, None] = field(default_factory=dict)
    negatives: dict[str | None, None] = field(default_factory=dict)


class Queries:
    """Queries by a key (a text or an id) in the order in which they came; all are kept in memory.

    Passages are to be named as the builder returned them.
    """

    def __init__(self) -> None:
        self._queries: dict[str, JudgedQuery] = {}

    def get(self, key: str, where: str) -> JudgedQuery:
        if key not in self._queries:
            self._queries[key] = JudgedQuery(where)
        return self._queries[key]

    def __contains__(self, key: str) -> bool:
        return key in self._queries

    def write(self, builder: Builder, split: str, texts: dict[str, str] | None = None) -> None:
        """Every query becomes a question, any of whose positives is enough.

        texts: of each key, which is its id; None: keys are it.
        """
        for key, query in self._queries.items():
            builder.question(
                query.where,
                split,
                key if texts is None else texts[key],
                query.positives,
                id=None if texts is None else key,
                negatives=query.negatives,
                any_of=True,
            )
