"""beir: a folder of corpus, queries and relevance judgements, as BEIR publishes its datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.converters.builder import Builder, JudgedQueries
from data_pipeline.converters.inputs import DEFAULT_SPLIT, line_records, one_folder, read_tsv
from data_pipeline.dataset import find_file
from data_pipeline.errors import DataError

_HEADER = ["query-id", "corpus-id", "score"]


def beir(builder: Builder, inputs: Sequence[Path], splits: Sequence[str]) -> None:
    """Judgements above 0 are positives, others negatives; splits are the files of qrels/.

    Raises DataError for a broken line.
    """
    folder = one_folder(inputs, "corpus.jsonl, queries.jsonl and qrels/")
    for record in line_records(find_file(folder, "corpus")):
        builder.passage(
            record.where,
            record.text("title", ""),
            record.text("text"),
            record.id("_id"),
            record.data.get("metadata") or None,  # often {}, which says nothing
        )
    texts: dict[str, str] = {}
    for record in line_records(find_file(folder, "queries")):
        if texts.setdefault(record.id("_id"), record.text("text")) != record.text("text"):
            raise record.error(f'"_id" {record.id("_id")!r} stood for another text: correct one')
    for split in splits or (DEFAULT_SPLIT,):
        found = _judged(builder, folder / "qrels" / f"{split}.tsv", texts)
        found.write(builder, split, texts)
        if without := sum(id not in found for id in texts):
            builder.leave_out(f"queries without a judgement in {split}", without)


def _judged(builder: Builder, path: Path, texts: dict[str, str]) -> JudgedQueries:
    found = JudgedQueries()
    rows = read_tsv(path, " ".join(_HEADER))
    where, header = next(rows, (str(path), []))
    if header != _HEADER:
        raise DataError(f"{where}: give the header {', '.join(_HEADER)}, with tabs, first")
    for where, (id, passage, score) in rows:
        if id not in texts:
            builder.unknown("queries that are not in queries.jsonl", where, id)
            continue
        try:
            relevant = float(score) > 0
        except ValueError as error:
            raise DataError(f"{where}: the score is {score!r}: give a number") from error
        query = found.get(id, where)
        (query.positives if relevant else query.negatives)[builder.judged(where, passage)] = None
    return found
