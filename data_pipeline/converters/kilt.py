"""kilt: questions of KILT, whose provenance names paragraphs of its knowledge source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.inputs import Record, files_with_splits, line_records


def kilt(
    builder: Builder,
    inputs: Sequence[Path],
    splits: Sequence[str],
    *,
    knowledge: Path,
    all_passages: bool = False,
) -> None:
    """A passage is a paragraph, "PAGE:PARAGRAPH": those that a provenance names, or all.

    The questions are read twice, so that the knowledge source is read once and not kept. Raises
    DataError for a broken record.
    """
    files = files_with_splits(inputs, splits)
    wanted = {
        id for path, _ in files for record in line_records(path) for id in _provenance(record)
    }
    for page in line_records(knowledge):
        name, title = page.id("wikipedia_id"), page.text("wikipedia_title")
        for place, text in enumerate(page.texts("text")):
            if all_passages or f"{name}:{place}" in wanted:
                builder.passage(page.where, title, text, f"{name}:{place}")
    for path, split in files:
        for record in line_records(path):
            builder.question(
                record.where,
                split,
                record.text("input"),
                [builder.judged(record.where, id) for id in _provenance(record)],
                id=record.id("id"),
                answers=[output.text("answer", "") for output in record.records("output")],
            )


def _provenance(record: Record) -> Iterator[str]:
    """Ids of the paragraphs that an output rests on. Pages without a paragraph name none."""
    for output in record.records("output"):
        for source in output.records("provenance", []):
            page, start = source.id("wikipedia_id"), source.number("start_paragraph_id", None)
            if start is None:
                continue
            end = source.number("end_paragraph_id", start)
            if not 0 <= start <= end:
                raise source.error(
                    f"paragraphs {start} to {end}: give a start of 0 or more, and no end before it"
                )
            yield from (f"{page}:{place}" for place in range(start, end + 1))
