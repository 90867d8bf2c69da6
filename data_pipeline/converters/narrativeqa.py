"""narrativeqa: the folder of NarrativeQA, with summaries of stories or the stories themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.inputs import DEFAULT_SPLIT, Record, one_folder, read_csv
from data_pipeline.errors import DataError

_STORY_ENCODINGS = ("utf-8-sig", "latin-1")  # as the sites had them; latin-1 reads any bytes


def narrativeqa(
    builder: Builder, inputs: Sequence[Path], splits: Sequence[str], *, stories: bool = False
) -> None:
    """A passage is the summary of a document, or with `stories` the whole downloaded text.

    Splits are the sets of the files: train, valid, test. Documents without a summary or a
    downloaded story are left out with their questions. Raises DataError for a broken row, a
    question about an unknown document, and a split that no document is of.
    """
    folder = one_folder(inputs, "documents.csv, qaps.csv and third_party/")
    wanted = tuple(splits) or (DEFAULT_SPLIT,)
    documents = _documents(folder, wanted)
    passages = (_stories if stories else _summaries)(builder, folder, documents)
    if without := len(documents) - len(passages):
        builder.leave_out(f"documents without a {'story' if stories else 'summary'}", without)
    asked: dict[str, int] = {}
    for row in read_csv(folder / "qaps.csv", "document_id set question answer1 answer2"):
        document, split = row.id("document_id"), row.text("set")
        if split not in wanted:
            continue
        if document not in documents:
            raise row.error(f"documents.csv has no {document!r} in {split}: correct the id")
        number = asked[document] = asked.get(document, -1) + 1
        if document not in passages:
            builder.leave_out("questions about a document that was left out")
            continue
        builder.question(
            row.where,
            split,
            row.text("question"),
            [passages[document]],
            id=f"{document}-{number}",
            answers=[row.text("answer1"), row.text("answer2")],
        )


def _documents(folder: Path, wanted: tuple[str, ...]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    sets = set()
    path = folder / "documents.csv"
    for row in read_csv(path, "document_id set wiki_title"):
        sets.add(row.text("set"))
        if row.text("set") in wanted:
            first = found.setdefault(row.id("document_id"), row)
            if first is not row:
                raise row.error(f"the document_id is that of {first.where}: remove one")
    if missing := [split for split in wanted if split not in sets]:
        raise DataError(
            f"{path}: no document is of the set {', '.join(missing)}: give --split with one of "
            f"{', '.join(sorted(sets))}"
        )
    return found


def _summaries(
    builder: Builder, folder: Path, documents: dict[str, Record]
) -> dict[str, str | None]:
    passages = {}
    path = folder / "third_party" / "wikipedia" / "summaries.csv"
    for row in read_csv(path, "document_id set summary"):
        if document := documents.get(id := row.id("document_id")):
            title = document.text("wiki_title")
            passages[id] = builder.passage(row.where, title, row.text("summary"), id)
    return passages


def _stories(builder: Builder, folder: Path, documents: dict[str, Record]) -> dict[str, str | None]:
    passages = {}
    for id, document in documents.items():
        path = folder / "tmp" / f"{id}.content"
        if path.is_file() and (text := _story(path)).strip():
            passages[id] = builder.passage(str(path), document.text("wiki_title"), text, id)
    return passages


def _story(path: Path) -> str:
    data = path.read_bytes()
    for encoding in _STORY_ENCODINGS:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise AssertionError(f"{path}: {_STORY_ENCODINGS[-1]} reads any bytes")
