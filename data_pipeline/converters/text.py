"""text: a folder of .txt and .md files, one passage each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.inputs import read_text
from data_pipeline.errors import DataError

_SUFFIXES = (".txt", ".md")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)[ \t#]*")
_FENCE = re.compile(r" {0,3}(```|~~~)")


def text(builder: Builder, inputs: Sequence[Path], splits: Sequence[str]) -> None:
    """Every file of the folders is a passage, in the order of names; no questions, so no splits.

    The id is the path inside the folder. Raises DataError for a file that is not UTF-8, and for
    an input that is no folder.
    """
    if splits:
        raise DataError(f"--split {','.join(splits)}: plain texts have no questions; leave it out")
    for folder in inputs:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder: give one with .txt or .md files")
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in _SUFFIXES and path.is_file():
                _add_file(builder, folder, path)


def _add_file(builder: Builder, folder: Path, path: Path) -> None:
    content = read_text(path)
    if not content.strip():
        return builder.leave_out("empty files")
    title = _heading(content) if path.suffix.lower() == ".md" else ""
    builder.passage(str(path), title or path.stem, content, path.relative_to(folder).as_posix())


def _heading(content: str) -> str:
    """The first Markdown heading ("# ...") that is no comment in a code block, or ""."""
    in_code = False
    for line in content.splitlines():
        if _FENCE.match(line):
            in_code = not in_code
        elif not in_code and (match := _HEADING.fullmatch(line)) and match[1]:
            return match[1]
    return ""
