"""Collects what a converter reads: equal passages become one, ids are kept or made.

Passages and questions go to `Builder`; where the lines of a file judge single passages of a query,
`JudgedQueries` gathers them first.
"""

from __future__ import annotations

import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from data_pipeline.dataset import DatasetWriter, Passage, Question, found_first
from data_pipeline.errors import DataError

_MADE_ID_BYTES = 10
_NUMBERED = re.compile(r"(.*\D)([1-9]\d{0,17})", re.DOTALL)


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote, and what it left out.

    questions: how many of each split. repeated_passages: how often a passage came again, and was
    not written again. left_out: what was not written -> how many.
    """

    folder: str
    passages: int
    questions: dict[str, int]
    repeated_passages: int
    left_out: dict[str, int]


class Builder:
    """Writes passages and questions as they come; passages before the questions that name them.

    Keeps about 300 bytes of memory for each passage, and as much for each question.
    strict: refuse what `judged` leaves out.
    """

    def __init__(self, writer: DatasetWriter, strict: bool = False):
        self._writer, self._strict = writer, strict
        self._passages = _Register()  # by the digest of their text
        self._by_id: dict[str, int] = {}  # ids of the dataset and made ones -> place in register
        self._ids: list[str] = []  # the id under which each was written
        self._empty: set[str] = set()
        self._questions = _Register()  # by split and id
        self._contents: list[bytes] = []
        self._split_counts: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._unknown: dict[str, tuple[str, int]] = {}  # what -> the first, how many
        self._metadata: dict[int, bytes] = {}  # digests, of the passages that have some
        self._repeated = 0

    def passage(
        self, where: str, title: str, text: str, id: str | None = None, metadata: Any = None
    ) -> str | None:
        """Add a passage. id: the dataset's own; one is made of title and text otherwise.

        A title alone becomes the text: whatever reads passages needs one. Returns the id to name
        it by: that of an equal passage (apart from white space) if there is one; None when it is
        empty. Raises DataError when the id stands for another text.
        """
        title, text = title.strip(), text.strip()
        if not text:
            title, text = "", title
        if not text:
            self.leave_out("empty passages")
            if id is not None:
                self._empty.add(id)
            return None
        digest = _digest(where, [" ".join(title.split()), " ".join(text.split())])
        known = self._passages.get(digest)
        if id is not None and self._by_id.get(id, known) != known:
            raise DataError(
                f"{where}: the passage id {id!r} stands for another text in "
                f"{self._passages.where(self._by_id[id])}: give each passage an id of its own"
            )
        if known is not None:
            self._repeated += 1
            if metadata is not None and self._metadata.get(known) != _digest(where, [metadata]):
                self.leave_out("metadata of repeated passages that was not that of the first")
        else:
            known = self._passages.add(digest, where)
            self._ids.append(f"p{digest[:_MADE_ID_BYTES].hex()}" if id is None else id)
            self._by_id[self._ids[known]] = known
            if metadata is not None:
                self._metadata[known] = _digest(where, [metadata])
            self._writer.passage(Passage(self._ids[known], title, text, metadata))
        if id is not None:
            self._by_id[id] = known
        return self._ids[known]

    def find(self, where: str, id: str) -> str | None:
        """The id under which the dataset's passage `id` was written, None for an empty one.

        Raises DataError when there is none.
        """
        if id in self._by_id:
            return self._ids[self._by_id[id]]
        if id in self._empty:
            return None
        raise DataError(
            f"{where}: there is no passage {id!r} in the corpus: correct the id, or give the "
            "corpus that holds it"
        )

    def judged(self, where: str, id: str) -> str | None:
        """As `find`, for judgements of published sets, which may name what their corpus lacks.

        Such a passage is None too, and counted; a strict builder raises DataError.
        """
        if self._strict or id in self._by_id or id in self._empty:
            return self.find(where, id)
        self.unknown("passages that are not in the corpus", where, id)
        return None

    def unknown(self, what: str, where: str, id: str) -> None:
        """Count a judgement that names what is not there; the report names the first one.

        A strict builder raises DataError.
        """
        if self._strict:
            raise DataError(
                f"{where}: {id!r} is among the {what}: correct the id, or leave --strict out"
            )
        first, count = self._unknown.get(what, (f"{where}: {id!r}", 0))
        self._unknown[what] = first, count + 1

    def question(
        self,
        where: str,
        split: str,
        text: str,
        positives: Iterable[str | None],
        *,
        id: str | None = None,
        answers: Iterable[str] = (),
        steps: Iterable[Iterable[str | None]] = (),
        negatives: Iterable[str | None] = (),
        any_of: bool = False,
    ) -> None:
        """Add a question; passages are named as `passage` returned them.

        any_of: each of several positives is enough.

        It is left out, and counted, when it or a positive is empty or it has no positive. Steps
        that do not name exactly the positives are dropped; positives are no negatives. Raises
        DataError when another question of the split has its id.
        """
        found = _unique(positives)
        if not text.strip():
            return self.leave_out("questions without text")
        if any_of:  # an empty alternative is none
            found = tuple(i for i in found if i is not None) or found
        if not found:
            return self.leave_out("questions without a passage that answers them")
        if None in found:
            missing = " or missing" if self._unknown else ""
            return self.leave_out(f"questions that an empty{missing} passage answers")
        fields: dict[str, Any] = {
            "question": text.strip(),
            "answers": _unique(answer.strip() for answer in answers if answer.strip()),
            "positives": found,
            "steps": _steps(steps, found),
            "negatives": _unique(i for i in negatives if i is not None and i not in found),
            "any_of": any_of and len(found) > 1,
        }
        digest = _digest(where, list(fields.values()))
        id = f"q{digest[:_MADE_ID_BYTES].hex()}" if id is None else id
        if self._is_new(where, split, id, digest):
            self._writer.question(split, Question(id, **fields))
            self._split_counts[split] += 1

    def leave_out(self, what: str, count: int = 1) -> None:
        self._left_out[what] += count

    def converted(self) -> Converted:
        """Raises DataError when judgements named unknown ids, and no question is left."""
        left_out = dict(self._left_out)
        for what, (first, count) in self._unknown.items():
            if not self._split_counts:
                raise DataError(
                    f"no question can be written: {count:,} judgements name {what}, the first "
                    f"{first}: give the files that belong together"
                )
            left_out[f"judgements of {what} (the first: {first})"] = count
        return Converted(
            str(self._writer.folder),
            len(self._ids),
            dict(self._split_counts),
            self._repeated,
            left_out,
        )

    def _is_new(self, where: str, split: str, id: str, digest: bytes) -> bool:
        known = self._questions.get((split, id))
        if known is None:
            self._questions.add((split, id), where)
            self._contents.append(digest)
        elif self._contents[known] != digest:
            raise DataError(
                f"{where}: the question id {id!r} stands for another question in "
                f"{self._questions.where(known)}: give each question an id of its own"
            )
        else:
            self.leave_out("questions given again")
        return known is None


@dataclass
class JudgedQuery:
    """A query: where it was first named, and the passages judged for it (None: an empty one)."""

    where: str
    positives: dict[str | None, None] = field(default_factory=dict)
    negatives: dict[str | None, None] = field(default_factory=dict)


class JudgedQueries:
    """Queries by a key (a text or an id) in the order in which they came; all are kept in memory.

    Passages are to be named as the builder returned them.
    """

    def __init__(self) -> None:
        self._queries: dict[str, JudgedQuery] = {}

    def get(self, key: str, where: str) -> JudgedQuery:
        if key not in self._queries:
            self._queries[key] = JudgedQuery(where)
        return self._queries[key]

    def judge(self, key: str, where: str, passage: str | None, relevant: bool) -> None:
        """Add a judgement of a passage for a query."""
        query = self.get(key, where)
        (query.positives if relevant else query.negatives)[passage] = None

    def __contains__(self, key: str) -> bool:
        return key in self._queries

    def write(self, builder: Builder, split: str, texts: dict[str, str] | None = None) -> None:
        """Every query becomes a question, any of whose positives is enough.

        texts: of each key, which is its id; None: keys are it.
        """
        for key, query in self._queries.items():
            builder.question(
                query.where,
                split,
                key if texts is None else texts[key],
                query.positives,
                id=None if texts is None else key,
                negatives=query.negatives,
                any_of=True,
            )


class _Register:
    """Numbers keys in the order in which they come, and knows where each came from.

    Places that differ in a last number, such as lines of a file, share their text.
    """

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._texts: dict[str, int] = {}
        self._text = array("I")
        self._last = array("Q")

    def get(self, key: Any) -> int | None:
        return self._numbers.get(key)

    def add(self, key: Any, where: str) -> int:
        match = _NUMBERED.fullmatch(where)
        text, last = match.groups() if match else (where, "0")
        self._text.append(self._texts.setdefault(f"{text}\0" if match else text, len(self._texts)))
        self._last.append(int(last))
        return self._numbers.setdefault(key, len(self._numbers))

    def where(self, number: int) -> str:
        text = next(text for text, index in self._texts.items() if index == self._text[number])
        return text.replace("\0", str(self._last[number]))


def _digest(where: str, fields: list[Any]) -> bytes:
    try:
        text = json.dumps(fields, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: holds half a surrogate pair: {error}; remove it") from error
    return blake2b(text, digest_size=16).digest()


def _unique(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _steps(
    steps: Iterable[Iterable[str | None]], positives: tuple[Any, ...]
) -> tuple[tuple[Any, ...], ...]:
    """Each passage in the first step that names it; () unless they are exactly the positives."""
    kept = found_first(steps)
    return kept if {i for step in kept for i in step} == set(positives) else ()
