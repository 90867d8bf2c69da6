"""msmarco: training triples of MS MARCO passages, as texts or as ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.converters.builder import Builder, JudgedQueries
from data_pipeline.converters.inputs import files_by_split, read_tsv
from data_pipeline.errors import DataError


def msmarco(
    builder: Builder,
    inputs: Sequence[Path],
    splits: Sequence[str],
    *,
    collection: Path | None = None,
    queries: Path | None = None,
) -> None:
    """The triples of a query become one question.

    Triples of texts stand alone; triples of ids need the collection, all of which becomes the
    corpus, and the queries. Raises DataError for a broken line, and when only one of the two files
    is given.
    """
    files = files_by_split(inputs, splits)
    if (collection is None) != (queries is None):
        raise DataError(
            "triples of ids need both --collection and --queries, triples of texts neither"
        )
    if collection is None or queries is None:
        for split, paths in files.items():
            _add_texts(builder, paths, split)
        return
    for where, (id, text) in read_tsv(collection, "pid passage"):
        builder.passage(where, "", text, id)
    texts = _query_texts(queries)
    asked: set[str] = set()
    for split, paths in files.items():
        asked |= _add_ids(builder, paths, split, texts)
    if len(asked) < len(texts):
        builder.leave_out("queries without a triple", len(texts) - len(asked))


def _add_texts(builder: Builder, paths: list[Path], split: str) -> None:
    found = JudgedQueries()
    for path in paths:
        for where, (text, positive, negative) in read_tsv(path, "query positive negative"):
            query = found.get(text, where)
            query.positives[builder.passage(where, "", positive)] = None
            query.negatives[builder.passage(where, "", negative)] = None
    found.write(builder, split)


def _add_ids(builder: Builder, paths: list[Path], split: str, texts: dict[str, str]) -> set[str]:
    found = JudgedQueries()
    for path in paths:
        for where, (id, positive, negative) in read_tsv(path, "qid pid pid"):
            if id not in texts:
                builder.unknown("queries that are not in --queries", where, id)
                continue
            query = found.get(id, where)
            query.positives[builder.judged(where, positive)] = None
            query.negatives[builder.judged(where, negative)] = None
    found.write(builder, split, texts)
    return {id for id in texts if id in found}


def _query_texts(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for where, (id, text) in read_tsv(path, "qid query"):
        if texts.setdefault(id, text) != text:
            raise DataError(f"{where}: the query id {id!r} stood for another text: correct one")
    return texts
