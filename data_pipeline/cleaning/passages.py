"""Which passages of a corpus are kept, and which kept passage stands for each other one.

Passages with the same text are one passage, whatever their titles; near-duplicates must agree in
the title too (`near.NearIndex` says why). A passage is only ever a duplicate of a passage that is
KEPT, so every removal is within the threshold of what stands for it (chains of look-alikes do not
drift away). Of equal passages the first in the file is kept.

What stays in memory: ids, 16-byte digests and MinHash signatures with their index (together about
3 KB a passage), and the shingles of passages that have a candidate; texts are read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.cleaning.against import EvalSet
from data_pipeline.cleaning.near import NearIndex, Sketcher, shingles
from data_pipeline.cleaning.quality import QualityRules, passage_fault
from data_pipeline.cleaning.report import Findings
from data_pipeline.cleaning.text import digest, normalise, words
from data_pipeline.dataset import Passage, read_passages
from data_pipeline.errors import DataError

REMOVED = -1


class CleanedPassages:
    """The fate of every passage of a corpus. Raises DataError for an id that stands twice.

    evals: evaluation sets; those with drop lose the passages that copy their positives.
    see: is called with every passage of the file, in order.
    """

    def __init__(
        self,
        path: Path,
        quality: QualityRules,
        sketcher: Sketcher | None,
        evals: Sequence[EvalSet],
        drop_copies: bool,
        findings: Findings,
        see: Callable[[Passage], None],
    ):
        self._path = path
        self._quality = quality
        self._sketcher = sketcher
        self._drop_copies = drop_copies
        self._findings = findings
        self._rows: dict[str, int] = {}
        self._names: list[str] = []
        self._kept: list[int] = []  # the row that stands for a row, or REMOVED
        self._copies = {one.name: set[int]() for one in evals}
        self._evals = evals
        self._first: dict[bytes, int] = {}
        self._compared: list[tuple[int, Any]] = []  # (row, signature)
        for passage in read_passages(path):
            see(passage)
            self._judge(passage)
        if sketcher is not None:
            self._remove_near(sketcher)
        self._settle()

    @property
    def read(self) -> int:
        return len(self._names)

    @property
    def written(self) -> int:
        return sum(row == kept for row, kept in enumerate(self._kept))

    def known(self, name: str) -> bool:
        return name in self._rows

    def stands_for(self, name: str) -> str | None:
        """The id of the kept passage that a passage became, itself or another; None: removed."""
        kept = self._kept[self._rows[name]]
        return None if kept == REMOVED else self._names[kept]

    def copies(self, name: str, one: EvalSet) -> bool:
        """Whether a passage, or one that it stands for, copies a positive of an evaluation set."""
        row = self._rows[name]
        return row in self._copies[one.name] or self._kept[row] in self._copies[one.name]

    def survivors(self) -> Iterator[Passage]:
        """The kept passages, read again."""
        for row, passage in enumerate(read_passages(self._path)):
            if self._kept[row] == row:
                yield passage

    def _judge(self, passage: Passage) -> None:
        row = len(self._names)
        if self._rows.setdefault(passage.id, row) != row:
            raise DataError(f"{self._path}: two passages have the id {passage.id!r}: rename one")
        self._names.append(passage.id)
        tokens = words(passage.text)
        if (fault := passage_fault(passage, tokens, self._quality)) is not None:
            self._kept.append(REMOVED)
            self._findings.note(fault, id=passage.id, text=passage.text)
            return
        grams = signature = None
        if self._sketcher is not None:
            grams = shingles(tokens)
            signature = self._sketcher.signature(grams)
        if self._compare(row, passage, tokens, grams, signature) and self._drop_copies:
            self._kept.append(REMOVED)
            self._findings.note("copies_evaluation", id=passage.id, text=passage.text)
            return
        first = self._first.setdefault(digest(passage.text), row)
        self._kept.append(first)
        if first != row:
            self._findings.note(
                "exact_duplicate", id=passage.id, kept=self._names[first], text=passage.text
            )
        elif len(tokens):
            self._compared.append((row, signature))

    def _compare(self, row: int, passage: Passage, tokens, grams, signature) -> bool:
        """Whether a passage copies a positive of an evaluation set; both findings are noted."""
        for one in self._evals:
            if (question := one.quoted(tokens)) is not None:
                one.findings.note(
                    "passage_quotes_question",
                    id=passage.id,
                    text=passage.text,
                    evaluation_id=question.id,
                    evaluation_question=question.question,
                )
            if (found := one.copied(passage.text, grams, signature)) is not None:
                self._copies[one.name].add(row)
                if found[0] == passage.id and self._own(one):
                    continue  # no finding: it is that positive
                one.findings.note(
                    "passage_copies_positive",
                    id=passage.id,
                    text=passage.text,
                    evaluation_passage=found[0],
                    similarity=round(found[1], 4),
                )
        return any(row in copies for copies in self._copies.values())

    def _own(self, one: EvalSet) -> bool:
        return one.folder.resolve() == self._path.parent.resolve()

    def _remove_near(self, sketcher: Sketcher) -> None:
        """Second reading: the texts of candidates, against the kept ones before them."""
        flags = sketcher.candidates([signature for _, signature in self._compared])
        suspects = {row: s for (row, s), flag in zip(self._compared, flags, strict=True) if flag}
        self._compared.clear()
        index = NearIndex(sketcher)
        for row, passage in enumerate(read_passages(self._path)):
            if row not in suspects:
                continue
            grams, title = shingles(words(passage.text)), normalise(passage.title)
            if (found := index.find(grams, suspects[row], title)) is None:
                index.add(row, grams, suspects[row], title)
                continue
            self._kept[row] = found[0]
            self._findings.note(
                "near_duplicate",
                id=passage.id,
                kept=self._names[found[0]],
                similarity=round(found[1], 4),
                text=passage.text,
            )

    def _settle(self) -> None:
        """Exact copies of a passage that became another one's follow it."""
        self._kept = [REMOVED if row == REMOVED else self._kept[row] for row in self._kept]
        for copies in self._copies.values():
            copies.update([self._kept[row] for row in copies if self._kept[row] != REMOVED])
