"""triviaqa: the json files of TriviaQA and its folder of evidence documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.inputs import Record, files_with_splits, list_records, read_text
from data_pipeline.converters.matching import words
from data_pipeline.errors import DataError

_FOLDERS = {"EntityPages": "wikipedia", "SearchResults": "web"}


def triviaqa(
    builder: Builder, inputs: Sequence[Path], splits: Sequence[str], *, evidence: Path
) -> None:
    """Evidence documents that contain an answer are positives, the others of a question negatives.

    evidence: the folder with wikipedia/ and web/ in it. Documents that are not there (some never
    were) are counted. Raises DataError for a broken record or document.
    """
    if not evidence.is_dir():
        raise DataError(f"--evidence {evidence}: give the folder with wikipedia/ and web/ in it")
    titles: dict[str, str] = {}  # search results give one document several
    for path, split in files_with_splits(inputs, splits):
        for record in list_records(path, "Data"):
            _add_record(builder, split, record, evidence, titles)


def _add_record(
    builder: Builder, split: str, record: Record, evidence: Path, titles: dict[str, str]
) -> None:
    answer = record.record("Answer")
    answers = [answer.text("Value"), *answer.texts("Aliases", [])]
    wanted = {words(text) for text in answers if words(text).strip()}
    positives, negatives = [], []
    for page, file in _documents(builder, record, evidence):
        text = read_text(file)
        place = file.relative_to(evidence).as_posix()
        title = titles.setdefault(place, page.text("Title", ""))
        passage = builder.passage(str(file), title, text, place)
        found = words(text)
        (positives if any(alias in found for alias in wanted) else negatives).append(passage)
    if not positives:
        return builder.leave_out("questions whose answer is in no evidence document")
    builder.question(
        record.where,
        split,
        record.text("Question"),
        positives,
        id=record.id("QuestionId"),
        answers=answers,
        any_of=True,
        negatives=negatives,
    )


def _documents(builder: Builder, record: Record, evidence: Path) -> Iterator[tuple[Record, Path]]:
    """The pages of a question that have a document, and its file."""
    for key, folder in _FOLDERS.items():
        for page in record.records(key, []):
            name = page.text("Filename", "")
            if name and (file := evidence / folder / name).is_file():
                yield page, file
            else:
                builder.leave_out("evidence documents that are not in the folder")
