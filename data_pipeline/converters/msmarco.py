"""msmarco: training triples of MS MARCO passages, as texts or as ids, and its judgements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.converters.builder import Builder, JudgedQueries
from data_pipeline.converters.inputs import files_by_split, read_cells, read_tsv
from data_pipeline.converters.qrels import TREC_COLUMNS, Judgement, add_judgements, read_qrels
from data_pipeline.errors import DataError


def msmarco(
    builder: Builder,
    inputs: Sequence[Path],
    splits: Sequence[str],
    *,
    collection: Path | None = None,
    queries: Path | None = None,
) -> None:
    """The triples, or judgements, of a query become one question.

    Triples of texts stand alone; triples of ids and judgements (qrels) need the collection, all of
    which becomes the corpus, and the queries. Raises DataError for a broken line, and when only one
    of the two files is given.
    """
    files = files_by_split(inputs, splits)
    if (collection is None) != (queries is None):
        raise DataError(
            "triples of ids need both --collection and --queries, and so do qrels; triples of "
            "texts need neither"
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
        add_judgements(builder, found, _judgements(path), texts, "--queries")
    found.write(builder, split, texts)
    return {id for id in texts if id in found}


def _judgements(path: Path) -> Iterator[Judgement]:
    """Of triples of ids, whose first passage is relevant, or of qrels, told by four columns."""
    _, first = next(read_cells(path), ("", []))
    if len(first) == TREC_COLUMNS:
        yield from read_qrels(path)
        return
    for where, (query, positive, negative) in read_tsv(path, "qid pid pid"):
        yield Judgement(where, query, positive, True)
        yield Judgement(where, query, negative, False)


def _query_texts(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for where, (id, text) in read_tsv(path, "qid query"):
        if texts.setdefault(id, text) != text:
            raise DataError(f"{where}: the query id {id!r} stood for another text: correct one")
    return texts
