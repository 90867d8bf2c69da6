"""beir: a folder of corpus, queries and relevance judgements, as BEIR publishes its datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.converters.builder import Builder, JudgedQueries
from data_pipeline.converters.inputs import DEFAULT_SPLIT, line_records, one_folder
from data_pipeline.converters.qrels import add_judgements, read_qrels
from data_pipeline.dataset import find_file

_SUFFIXES = (".tsv", ".txt", ".qrels", ".tsv.gz")


def beir(builder: Builder, inputs: Sequence[Path], splits: Sequence[str]) -> None:
    """Judgements above 0 are positives, others negatives; splits are the files of qrels/.

    They are BEIR's, with or without a header, or TREC's.

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
        found = _judged(builder, _qrels(folder, split), texts)
        found.write(builder, split, texts)
        if without := sum(id not in found for id in texts):
            builder.leave_out(f"queries without a judgement in {split}", without)


def _qrels(folder: Path, split: str) -> Path:
    paths = [folder / "qrels" / f"{split}{suffix}" for suffix in _SUFFIXES]
    return next((path for path in paths if path.is_file()), paths[0])


def _judged(builder: Builder, path: Path, texts: dict[str, str]) -> JudgedQueries:
    found = JudgedQueries()
    add_judgements(builder, found, read_qrels(path), texts, "queries.jsonl")
    return found
