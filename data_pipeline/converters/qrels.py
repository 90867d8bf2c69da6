"""Relevance judgements: BEIR's three columns with or without their header, and TREC's four."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.converters.builder import Builder, JudgedQueries
from data_pipeline.converters.inputs import read_cells
from data_pipeline.errors import DataError

BEIR_COLUMNS, TREC_COLUMNS = 3, 4


@dataclass(frozen=True)
class Judgement:
    """Of a passage for a query. relevant: its score is above 0."""

    where: str
    query: str
    passage: str
    relevant: bool


def add_judgements(
    builder: Builder,
    found: JudgedQueries,
    judgements: Iterable[Judgement],
    texts: Collection[str],
    named: str,
) -> None:
    """Judgements of queries that are in `texts`; others are counted as not being in `named`."""
    for each in judgements:
        if each.query not in texts:
            builder.unknown(f"queries that are not in {named}", each.where, each.query)
        else:
            passage = builder.judged(each.where, each.passage)
            found.judge(each.query, each.where, passage, each.relevant)


def read_qrels(path: Path) -> Iterator[Judgement]:
    """Judgements of a file of `query passage score` or `query iteration passage score`.

    With tabs between them, or spaces where there is no tab. A first line whose score is no number
    is a header. Raises DataError, naming file and line, for a line of another form, and for a file
    without a judgement.
    """
    width, begun = 0, False
    for where, cells in read_cells(path):
        if not width and len(cells) not in (BEIR_COLUMNS, TREC_COLUMNS):
            raise DataError(
                f"{where}: has {len(cells)} columns, not 3 or 4: give query, passage, score, or "
                "TREC's query, 0, passage, score"
            )
        width = width or len(cells)
        if len(cells) != width:
            raise DataError(f"{where}: has {len(cells)} columns, not {width}: give as many")
        try:
            relevant = float(cells[-1]) > 0
        except ValueError as error:
            if begun:
                said = f"{where}: the score is {cells[-1]!r}: give a number"
                raise DataError(said) from error
            begun = True
            continue
        begun = True
        yield Judgement(where, cells[0], cells[-2], relevant)
    if not begun:
        raise DataError(f"{path}: holds no judgement: give lines of query, passage, score")
