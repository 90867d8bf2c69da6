"""Clean a dataset folder: one folder in, one folder and a report out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline import files
from data_pipeline.cleaning.against import EvalSet, load_eval_sets, splits
from data_pipeline.cleaning.near import LOWEST, Sketcher
from data_pipeline.cleaning.passages import CleanedPassages
from data_pipeline.cleaning.quality import AnswersInPositives, QualityRules, question_fault
from data_pipeline.cleaning.questions import merge, remap
from data_pipeline.cleaning.report import Findings
from data_pipeline.dataset import Question, find_file, read_questions, write_dataset
from data_pipeline.errors import DataError, check_least

DEFAULT_GRAM = 13


@dataclass(frozen=True)
class CleanConfig:
    """How to clean.

    near: Jaccard similarity from which passages are near-duplicates; 0: exact duplicates alone.
    against: evaluation sets, FOLDER or FOLDER:SPLIT. A split of the cleaned folder itself is held
        out: it is cleaned too, but its own questions are not dropped for being in it.
    ngram: words that a passage has to share with an evaluation question to be reported.
    drop_passages: remove passages that copy a positive of an evaluation set, too.
    examples: how many removals of each rule the report shows.
    """

    near: float = 0.8
    against: tuple[str, ...] = ()
    ngram: int = DEFAULT_GRAM
    drop_passages: bool = False
    quality: QualityRules = field(default_factory=QualityRules)
    examples: int = 5

    def __post_init__(self) -> None:
        if self.near != 0 and not LOWEST <= self.near <= 1:
            raise DataError(
                f"near is {self.near}: give {LOWEST} to 1, or 0 to look for exact duplicates alone"
            )
        if self.ngram < 1:
            raise DataError(f"ngram is {self.ngram}: give 1 or more words ({DEFAULT_GRAM})")
        check_least(0, self, "", "examples")
        if len(set(self.against)) < len(self.against):
            raise DataError(f"against names a set twice: {' '.join(self.against)}")


def clean_dataset(
    dataset: Path | str, out: Path | str, report: Path | str, config: CleanConfig
) -> dict[str, Any]:
    """Write the cleaned dataset to `out`, and the report, which is returned, to `report`.

    Neither appears unless both do. Passages are judged first (quality, then copies of evaluation
    passages, then exact and near-duplicates), then questions (see `against` and `questions`).
    Questions are held in memory, passages are not. Raises DataError when `out` exists, an input is
    broken, a question names a passage that the corpus lacks, or nothing is left.
    """
    dataset, out, report = Path(dataset), Path(out), Path(report)
    _check_targets(out, report)
    corpus = find_file(dataset, "corpus")
    asked = {
        split: list(read_questions(find_file(dataset, f"questions.{split}")))
        for split in splits(dataset)
    }
    sketcher = Sketcher(config.near) if config.near else None
    evals = load_eval_sets(config.against, dataset, config.ngram, sketcher, config.examples)
    if config.drop_passages and any(_holds(one, dataset, one.splits[0]) for one in evals):
        raise DataError(
            f"--drop-passages with a split of {dataset} itself would remove the passages that its "
            "questions need: leave one of the two out"
        )
    findings = Findings(config.examples)
    answers = AnswersInPositives(question for split in asked.values() for _, question in split)
    passages = CleanedPassages(
        corpus, config.quality, sketcher, evals, config.drop_passages, findings, answers.see
    )
    kept: dict[str, list[Question]] = {}
    found: dict[str, dict[str, Any]] = {}
    first = 0
    for split, pairs in asked.items():
        split_findings = Findings(config.examples)
        judge = _Judge(
            passages,
            [one for one in evals if not _holds(one, dataset, split)],
            config.quality,
            answers.found if config.quality.answer_in_positive else None,
            split_findings,
        )
        kept[split] = merge(judge.survivors(pairs, first), split_findings)
        first += len(pairs)
        found[split] = {
            "read": len(pairs),
            "written": len(kept[split]),
            "rules": split_findings.as_dict(),
        }
    result = {
        "dataset": str(dataset),
        "out": str(out),
        "settings": asdict(config),
        "passages": {
            "read": passages.read,
            "written": passages.written,
            "rules": findings.as_dict(),
        },
        "questions": found,
        "against": [one.as_dict() for one in evals],
    }
    _write(out, report, result, passages, kept)
    return result


@dataclass(frozen=True)
class _Judge:
    """Decides about the questions of one split, in the order of the rules below.

    evals: the evaluation sets to keep clear of. answered: numbers of the questions with an answer
    in a positive; None where that is not required.
    """

    passages: CleanedPassages
    evals: Sequence[EvalSet]
    quality: QualityRules
    answered: set[int] | None
    findings: Findings

    def survivors(self, pairs: Sequence[tuple[str, Question]], first: int) -> Iterator[Question]:
        """The questions that stay, naming kept passages. first: the number of the first one."""
        for number, (where, question) in enumerate(pairs, first):
            self._check_names(where, question)
            fault = self._fault(number, question)
            if fault is not None:
                self.findings.note(fault, id=question.id, question=question.question)
            elif (settled := remap(question, self.passages, self.findings)) is not None:
                yield settled

    def _check_names(self, where: str, question: Question) -> None:
        for name in (*question.positives, *sum(question.steps, ()), *question.negatives):
            if not self.passages.known(name):
                raise DataError(
                    f"{where}: the corpus has no passage {name!r}: give the corpus that the "
                    "questions were made for"
                )

    def _fault(self, number: int, question: Question) -> str | None:
        if (fault := question_fault(question, self.quality)) is not None:
            return fault
        if not question.positives:
            return "no_positives"
        if self._contaminated(question):
            return "in_evaluation"
        if self.answered is not None and number not in self.answered:
            return "answer_not_in_positive"
        return None

    def _contaminated(self, question: Question) -> bool:
        """Every evaluation set is asked, so that each one's count is complete."""
        hit = False
        for one in self.evals:
            shown = {"id": question.id, "question": question.question}
            if (match := one.question_match(question)) is not None:
                how, other = match
                one.findings.note(
                    f"question_{how}",
                    **shown,
                    evaluation_id=other.id,
                    evaluation_question=other.question,
                )
                hit = True
            if any(self.passages.copies(name, one) for name in question.positives):
                one.findings.note("question_with_copied_positive", **shown)
                hit = True
        return hit


def _holds(one: EvalSet, dataset: Path, split: str) -> bool:
    return one.folder.resolve() == dataset.resolve() and split in one.splits


def _check_targets(out: Path, report: Path) -> None:
    if out.exists():
        raise DataError(f"{out} exists already: remove it, or give another folder")
    if report.is_dir() or report == out:
        raise DataError(f"{report} is a folder: give the report a file of its own")
    if out in report.parents:
        raise DataError(f"the report {report} would be inside {out}: give a file elsewhere")


def _write(
    out: Path, report: Path, result: dict[str, Any], passages: CleanedPassages, kept: dict[str, Any]
) -> None:
    report.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, ensure_ascii=False, indent=1) + "\n"
    with files.whole(report) as partial:
        partial.write_text(text, encoding="utf-8")
        pairs = ((split, question) for split in kept for question in kept[split])
        write_dataset(out, passages.survivors(), pairs)
