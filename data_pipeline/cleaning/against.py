"""Evaluation sets, and what of them stands in training data.

A training QUESTION is contaminated by an evaluation question when
  - both are equal once normalised, or
  - one of the two contains the other: all word 8-grams of the one occur in the other (a question
    of fewer than 8 words can only be equal); or
  - one of its positive passages is an exact copy (normalised) or a near-duplicate of a positive
    passage of the evaluation question, whatever their titles.
Contaminated questions are dropped. The passage may stay, as a document that nothing asks for.

A training PASSAGE that shares a word 13-gram with the text "question answer" of an evaluation
question (any of its answers) is reported, not removed: a memory is meant to hold the documents
that are asked about, but questions and answers copied into one are for a person to judge. 13 words
are the common choice for language models (Brown et al. 2020, "Language Models are Few-Shot
Learners", appendix C); a question and answer of fewer words together match nothing.

Words are those of `text.words`, so the n-grams of Chinese are of characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.cleaning.near import NearIndex, Sketcher, shingles
from data_pipeline.cleaning.report import Findings
from data_pipeline.cleaning.text import digest, ngrams, words
from data_pipeline.dataset import Question, find_file, read_passages, read_questions
from data_pipeline.errors import DataError

QUESTION_GRAM = 8


def splits(folder: Path) -> list[str]:
    """Names of the splits that a dataset folder has questions of, sorted."""
    found = (path.name.split(".jsonl")[0] for path in folder.glob("questions.*.jsonl*"))
    return sorted({name.removeprefix("questions.") for name in found})


def parse_eval_set(name: str) -> tuple[Path, list[str]]:
    """FOLDER, or FOLDER:SPLIT. Raises DataError when there are no such questions."""
    folder, colon, split = name.rpartition(":")
    if colon and not Path(name).is_dir():
        find_file(folder, f"questions.{split}")
        return Path(folder), [split]
    if not (found := splits(Path(name))):
        raise DataError(
            f"{name} holds no questions.SPLIT.jsonl: give a dataset folder, or FOLDER:SPLIT"
        )
    return Path(name), found


class EvalSet:
    """One evaluation set: its questions, and its positive passages.

    gram: length of the n-grams that passages are searched for. sketcher: None finds exact copies
    alone. Raises DataError when the folder is not a dataset, or lacks a positive that it names.
    """

    def __init__(self, name: str, gram: int, sketcher: Sketcher | None, examples: int):
        self.name = name
        self.folder, self.splits = parse_eval_set(name)
        self.findings = Findings(examples)
        self._gram = gram
        self._questions: list[Question] = []
        self._equal: dict[bytes, int] = {}
        self._lengths: list[int] = []  # different 8-grams of a question
        self._holding: dict[int, list[int]] = {}  # 8-gram -> questions
        self._answered: dict[int, int] = {}  # n-gram of question and answer -> question
        self._copied: dict[bytes, str] = {}  # digest -> positive passage
        self._near = None if sketcher is None else NearIndex(sketcher)
        self._positives: list[str] = []
        for split in self.splits:
            for _, question in read_questions(find_file(self.folder, f"questions.{split}")):
                self._add(question)
        self._read_positives(sketcher)

    def question_match(self, question: Question) -> tuple[str, Question] | None:
        """("equal" or "contained", the evaluation question) that a question is, if any."""
        if (number := self._equal.get(digest(question.question))) is not None:
            return "equal", self._questions[number]
        grams = _grams(question.question)
        shared = Counter(number for gram in grams for number in self._holding.get(gram, ()))
        for number, count in shared.items():
            if count == len(grams) or count == self._lengths[number]:
                return "contained", self._questions[number]
        return None

    def quoted(self, tokens: list[str]) -> Question | None:
        """The evaluation question whose text, or answer, shares an n-gram with a passage."""
        for gram in ngrams(tokens, self._gram).tolist():
            if (number := self._answered.get(gram)) is not None:
                return self._questions[number]
        return None

    def copied(self, text: str, grams: np.ndarray, signature: Any) -> tuple[str, float] | None:
        """(id, similarity) of the positive that a passage copies. signature: None if not near."""
        if (name := self._copied.get(digest(text))) is not None:
            return name, 1.0
        if self._near is None or (found := self._near.find(grams, signature)) is None:
            return None
        return self._positives[found[0]], found[1]

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "splits": self.splits,
            "questions": len(self._questions),
            "positive_passages": len(self._positives),
            "found": self.findings.as_dict(),
        }

    def _add(self, question: Question) -> None:
        number = len(self._questions)
        self._questions.append(question)
        self._equal.setdefault(digest(question.question), number)
        grams = _grams(question.question)
        self._lengths.append(len(grams))
        for gram in grams:
            self._holding.setdefault(gram, []).append(number)
        for answer in question.answers or ("",):
            for gram in ngrams(words(f"{question.question} {answer}"), self._gram).tolist():
                self._answered.setdefault(gram, number)

    def _read_positives(self, sketcher: Sketcher | None) -> None:
        wanted = {name for question in self._questions for name in question.positives}
        path = find_file(self.folder, "corpus")
        for passage in read_passages(path):
            if passage.id not in wanted:
                continue
            wanted.remove(passage.id)
            number = len(self._positives)
            self._positives.append(passage.id)
            self._copied.setdefault(digest(passage.text), passage.id)
            if self._near is not None:
                grams = shingles(words(passage.text))
                self._near.add(number, grams, sketcher.signature(grams))
        if wanted:
            raise DataError(
                f"{path} has no passage {min(wanted)!r}, which a question of {self.name} names: "
                "give the corpus that its questions were made for"
            )


def load_eval_sets(
    names: Sequence[str], dataset: Path, gram: int, sketcher: Sketcher | None, examples: int
) -> list[EvalSet]:
    """Evaluation sets by name. Raises DataError when one holds all that is to be cleaned."""
    sets = [EvalSet(name, gram, sketcher, examples) for name in names]
    for one in sets:
        if one.folder.resolve() == dataset.resolve() and one.splits == splits(dataset):
            raise DataError(
                f"--against {one.name} is the whole dataset that is cleaned: name the split that "
                f"is held out, as {dataset}:SPLIT"
            )
    return sets


def _grams(question: str) -> set[int]:
    return set(ngrams(words(question), QUESTION_GRAM).tolist())
