"""Settings of a source that is made from a dataset folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from data_pipeline.errors import DataError, check_least
from data_pipeline.sources.base import BankConfig, check_tasks
from data_pipeline.splitting import DOCUMENT_TOKENS

DatasetTask = Literal["given", "title", "inverse_cloze", "text"]
DATASET_TASKS: tuple[DatasetTask, ...] = get_args(DatasetTask)


@dataclass(frozen=True)
class NegativesConfig:
    """Hard negatives: documents that look right and are not.

    count: how many for each question, if its bank has room; the rest of a bank is random.
    bm25: this many of the best by BM25 are candidates (0: none).
    mined: a file of negatives that a trained router found (`msa data mine`).
    Those that the dataset itself names are always candidates. A document that holds an answer is
    never chosen, and never counts as a negative where it stands in the bank all the same.
    """

    count: int = 2
    bm25: int = 16
    mined: str | None = None

    def __post_init__(self) -> None:
        check_least(0, self, "data.datasets.*.negatives.", "count", "bm25")


@dataclass(frozen=True)
class DatasetConfig:
    """A dataset folder as a source (see data_pipeline/dataset.py for its form).

    split: of the questions to train on. held_out_split: of those to evaluate on while training.
    questions: number of questions of the split to use, chosen at random (null: all).
    tasks: shares of a bank's contexts. given: questions of the dataset. title: a title asks for
        its passage. inverse_cloze: a sentence asks for the passage it was taken out of (nine times
        in ten; Lee et al. 2019). text: a passage is read as plain text, without a memory.
    made_held_out_share: share of the passages, chosen by their ids, about which training never
        makes a question of its own (title, inverse_cloze, text).
    document_tokens: passages longer than this (with title and wrapper) are split at sentences.
    titles: documents begin with their title.
    """

    path: str
    split: str = "train"
    held_out_split: str | None = None
    bank: BankConfig = field(default_factory=BankConfig)
    questions: int | None = None
    tasks: Mapping[DatasetTask, float] = field(default_factory=lambda: {"given": 1.0})
    made_held_out_share: float = 0.02
    document_tokens: int = DOCUMENT_TOKENS
    titles: bool = True
    negatives: NegativesConfig = field(default_factory=NegativesConfig)

    def __post_init__(self) -> None:
        if not self.split:
            raise DataError(
                f"data.datasets.*.split is {self.split!r}: name the questions to train on, as "
                "in train for questions.train.jsonl"
            )
        check_tasks(self.tasks, DATASET_TASKS, "data.datasets.*.tasks")
        if not sum(self.tasks.values()) > 0:
            raise DataError(f"data.datasets.*.tasks is {dict(self.tasks)}: make one positive")
        check_least(1, self, "data.datasets.*.", "questions")
        if not 0 <= self.made_held_out_share < 1:
            raise DataError(
                f"data.datasets.*.made_held_out_share is {self.made_held_out_share}: give 0 to "
                "below 1"
            )
        check_least(16, self, "data.datasets.*.", "document_tokens")

    def held_out(self) -> DatasetConfig | None:
        """The same with the tasks for which something is held out; None without any."""
        tasks = {
            task: share
            for task, share in self.tasks.items()
            if share and (self.held_out_split if task == "given" else self.made_held_out_share)
        }
        return replace(self, tasks=tasks) if tasks else None
