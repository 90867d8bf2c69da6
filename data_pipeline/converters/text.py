"""text: folders of .txt and .md files, one passage each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.inputs import files_with_splits, read_text
from data_pipeline.converters.question_files import add_questions
from data_pipeline.errors import DataError

_SUFFIXES = (".txt", ".md")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)[ \t#]*")
_FENCE = re.compile(r" {0,3}(```|~~~)")


def text(
    builder: Builder,
    inputs: Sequence[Path],
    splits: Sequence[str],
    *,
    questions: Path | None = None,
) -> None:
    """Every file of the folders is a passage, in the order of names.

    Hidden files and folders (".git") are left out. The id is the path inside the folder; of several
    folders, inside the one that holds them all. questions: a file of questions, whose positives are
    such ids. Raises DataError for a file that is not UTF-8, for a folder that cannot be read, and
    for an input that is no folder.
    """
    if splits and questions is None:
        raise DataError(
            f"--split {','.join(splits)}: plain texts have no questions; leave it out, or give "
            "--questions"
        )
    for folder in inputs:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder: give one with .txt or .md files")
    root = Path(os.path.commonpath([folder.resolve() for folder in inputs]))
    for folder in inputs:
        for path in sorted(_files(builder, folder)):
            place = folder.resolve() / path.relative_to(folder)
            _add_file(builder, path, place.relative_to(root).as_posix())
    for path, split in files_with_splits([questions] if questions else [], splits):
        add_questions(builder, path, split)


def _files(builder: Builder, folder: Path) -> Iterator[Path]:
    """The texts of a folder and all that are in it, but what is hidden."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        shown = [name for name in folders if not name.startswith(".")]
        if hidden := len(folders) - len(shown):
            builder.leave_out("hidden folders", hidden)
        folders[:] = shown
        for path in (Path(place) / name for name in names):
            if path.suffix.lower() not in _SUFFIXES or not path.is_file():
                continue
            if path.name.startswith("."):
                builder.leave_out("hidden files")
            else:
                yield path


def _add_file(builder: Builder, path: Path, id: str) -> None:
    if not id.isprintable() and any("\ud800" <= character <= "\udfff" for character in id):
        raise DataError(f"{str(path)!a}: the name is not UTF-8: rename the file or its folder")
    content = read_text(path)
    if not content.strip():
        return builder.leave_out("empty files")
    title = _heading(content) if path.suffix.lower() == ".md" else ""
    if title:
        content = _without_heading(content, title)
    builder.passage(str(path), title or path.stem, content, id)


def _without_heading(content: str, title: str) -> str:
    """Without the heading that stands in the title, if the text begins with it."""
    first, *rest = content.lstrip().splitlines(keepends=True)
    match = _HEADING.fullmatch(first.rstrip())
    return "".join(rest) if match and match[1] == title else content


def _heading(content: str) -> str:
    """The first Markdown heading ("# ...") that is no comment in a code block, or ""."""
    in_code = False
    for line in content.splitlines():
        if _FENCE.match(line):
            in_code = not in_code
        elif not in_code and (match := _HEADING.fullmatch(line)) and match[1]:
            return match[1]
    return ""
