"""Banks drawn from a dataset: its own questions, or questions made of its passages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.dataset import find_file, has_file, read_passages, read_questions
from data_pipeline.errors import DataError
from data_pipeline.schema import Document, Query
from data_pipeline.scripts import count_words
from data_pipeline.sources.base import DrawnBank, HeldOutBank, NumberConfig, Source, place_of
from data_pipeline.sources.dataset_config import DATASET_TASKS, DatasetConfig, DatasetTask
from data_pipeline.sources.dataset_tables import (
    PASSAGES,
    QUESTIONS,
    holds_answer,
    open_table,
    prepare,
    shown_text,
)
from data_pipeline.splitting import sentences

_KEEP_CLOZE = 0.1  # share of inverse cloze sentences that stay in their passage
_SHORTEST_SENTENCE = 5  # words of a sentence that may ask for its passage
_SEARCHED = 10_000  # candidates among which a bank without a question looks for one


@dataclass(frozen=True)
class _Item:
    """A question whose documents are named by their rows.

    also: rows that would do as well as the positives.
    shown: rows whose text is another one in this bank (a sentence or the title taken out).
    """

    id: str
    question: str
    answers: tuple[str, ...]
    steps: tuple[tuple[int, ...], ...]
    negatives: tuple[int, ...] = ()
    also: frozenset[int] = frozenset()
    shown: tuple[tuple[int, str], ...] = ()

    @property
    def positives(self) -> set[int]:
        return {row for step in self.steps for row in step}


@dataclass(frozen=True)
class StagedDataset:
    """A dataset as a stage reads it: passages longer than document_tokens are split."""

    config: DatasetConfig
    document_tokens: int


class DatasetSource(Source):
    """Draws banks of one dataset. Its tables are mapped, not loaded; a copy opens them again.

    Not under @register: data.datasets gives each its name.
    """

    settings = DatasetConfig

    def __init__(
        self,
        name: str,
        config: DatasetConfig,
        tables: Path,
        numbers: NumberConfig,
        held_out: bool = False,
        seed: int = 0,
    ):
        self.name, self.config, self.numbers = name, config, numbers
        self._tables, self._held_out, self._seed = tables, held_out, seed
        self._passages = open_table(tables / PASSAGES)
        has_questions = (tables / QUESTIONS).exists()
        self._questions = open_table(tables / QUESTIONS) if has_questions else None
        self._candidates = {
            task: self._candidates_of(task) for task in DATASET_TASKS if config.tasks.get(task)
        }
        self._order = lru_cache(2 * len(DATASET_TASKS))(self._permuted)

    @classmethod
    def make(cls, config: StagedDataset, inputs) -> DatasetSource:
        tables = cls.preparation(config, inputs)()
        return cls(inputs.name, config.config, tables, inputs.numbers, inputs.held_out, inputs.seed)

    @classmethod
    def for_stage(cls, config: DatasetConfig, document_tokens, tasks) -> StagedDataset:
        """A stage may only shorten documents; `tasks` are the needles' alone."""
        own = config.document_tokens
        return StagedDataset(config, min(document_tokens or own, own))

    @classmethod
    def preparation(cls, config: StagedDataset, inputs) -> Callable[[], Path]:
        """Makes the tables, unless they are there."""
        dataset = config.config
        split = dataset.held_out_split if inputs.held_out else dataset.split
        return partial(
            prepare,
            dataset,
            split if dataset.tasks.get("given") else None,
            config.document_tokens,
            inputs.tokenizer,
            inputs.prepared,
        )

    @classmethod
    def tokenizer_texts(cls, config: DatasetConfig, amounts, rng) -> Iterator[str]:
        """Passages under their titles, from all over the corpus, and questions of training."""
        corpus = read_passages(find_file(config.path, "corpus"))
        texts = [[shown_text(passage.title, passage.text) for passage in corpus]]
        if config.tasks.get("given"):
            questions = read_questions(find_file(config.path, f"questions.{config.split}"))
            texts.append([question.question for _, question in questions])
        for some in texts:
            chosen = rng.permutation(len(some))[: amounts.passages].tolist()
            yield from (some[place] for place in chosen)

    @classmethod
    def held_out(cls, config: DatasetConfig) -> DatasetConfig | None:
        return config.held_out()

    @classmethod
    def held_out_bank(cls, config: DatasetConfig, inputs, evaluation) -> HeldOutBank | None:
        """The whole corpus, and every question of held_out_split.

        Without that the questions of training are asked, and the bank says so; None without any.
        """
        split, length = config.held_out_split or config.split, config.document_tokens
        if config.held_out_split is None and not has_file(config.path, f"questions.{split}"):
            return None
        tables = prepare(config, split, length, inputs.tokenizer, inputs.prepared)
        rng = np.random.default_rng((evaluation.seed, 2))
        bank = whole_bank(tables, inputs.numbers, rng)
        return HeldOutBank(bank, "retrieval", seen=config.held_out_split is None)

    def __reduce__(self) -> tuple[Any, ...]:
        own = (self.name, self.config, self._tables, self.numbers, self._held_out, self._seed)
        return DatasetSource, own

    def __len__(self) -> int:
        """Documents, after long ones were split."""
        return len(self._passages)

    def bank(self, rng, documents, questions=None, document_tokens=None, place=0) -> DrawnBank:
        """Positives of `questions` questions, then hard negatives, then random documents.

        Questions whose documents would not fit are left out. document_tokens is not used: tables
        are made for one length. Every question of a task is asked once before any is asked again,
        but that a bank without any goes on to those of the next. Raises DataError where it finds
        nothing there either.
        """
        wanted = documents if questions is None else questions
        documents = min(documents, len(self._passages))
        for following in range(place, place + self._places(wanted)):
            drawn, texts = self._asked(wanted, following, rng)
            items, members = self._members(drawn, documents, rng)
            if items or texts:
                return replace(self._numbered(items, members, rng), texts=tuple(texts))
        raise DataError(self._nothing(documents, bool(drawn)))

    def _places(self, count: int) -> int:
        """Places in a row that hold every candidate: two epochs' worth, one of which is whole."""
        most = min(_SEARCHED, max(map(len, self._candidates.values())))
        return -(-2 * most // min(filter(None, self._shares(count).values())))

    def _asked(
        self, count: int, place: int, rng: np.random.Generator
    ) -> tuple[list[_Item], list[str]]:
        """What `count` contexts ask, and the plain texts among them."""
        items, texts = [], []
        for task, some in self._shares(count).items():
            for row in self._rows(task, some, place):
                if task == "text":
                    texts.append(self._text(row))
                elif (item := self._item(task, row, rng)) is not None:
                    items.append(item)
        return items, texts

    def _nothing(self, documents: int, asked: bool) -> str:
        """Why banks come out without a question."""
        name, path = f"data.datasets.{self.name}", self.config.path
        if asked:
            return (
                f"{name}: no question's passages fit in a bank of {documents} documents: raise "
                f"{name}.bank.documents, or convert more passages into {path}"
            )
        return (
            f"{name}: nothing can be asked of the passages of {path}: inverse_cloze needs two "
            f"sentences, one of {_SHORTEST_SENTENCE} words or more; give {name}.tasks another task"
        )

    def _shares(self, questions: int) -> dict[DatasetTask, int]:
        """Questions of each task in a bank, by largest remainder."""
        tasks = {task: self.config.tasks[task] for task in self._candidates}
        total = sum(tasks.values())
        exact = {task: questions * share / total for task, share in tasks.items()}
        counts = {task: int(share) for task, share in exact.items()}
        short = questions - sum(counts.values())
        for task in sorted(exact, key=lambda task: counts[task] - exact[task])[:short]:
            counts[task] += 1
        return counts

    def _rows(self, task: DatasetTask, count: int, place: int) -> list[int]:
        """The next `count` rows of a task's endless order, each once."""
        size = len(self._candidates[task])
        drawn = (divmod(i, size) for i in range(place * count, (place + 1) * count))
        return list(dict.fromkeys(int(self._order(task, epoch)[at]) for epoch, at in drawn))

    def _permuted(self, task: DatasetTask, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self._seed, DATASET_TASKS.index(task), epoch))
        return rng.permutation(self._candidates[task])

    def _candidates_of(self, task: DatasetTask) -> np.ndarray:
        """Rows that a task may draw: of the questions, or of the passages."""
        if task == "given":
            found = np.arange(0 if self._questions is None else len(self._questions))
            if self.config.questions is not None and not self._held_out:
                chosen = np.random.default_rng((self._seed, 0xCA9)).permutation(found)
                found = np.sort(chosen[: self.config.questions])
        else:
            ids, titles = (self._passages[column].to_pylist() for column in ("id", "title"))
            made = (place_of(id) >= self.config.made_held_out_share for id in ids)
            found = np.flatnonzero(
                [
                    trains != self._held_out and (task != "title" or bool(title))
                    for trains, title in zip(made, titles, strict=True)
                ]
            )
        if not len(found):
            raise DataError(
                f"data.datasets.{self.name}.tasks.{task}: {self.config.path} has nothing for it"
                f"{' to hold out' if self._held_out else ''}; set it to 0"
            )
        return found

    def _item(self, task: DatasetTask, row: int, rng: np.random.Generator) -> _Item | None:
        """A question; None for a passage that has no sentence to ask with."""
        if task == "given":
            found = self._questions.slice(row, 1).to_pylist()[0]
            steps, also = found["steps"], frozenset()
            if found["any_of"]:
                also = frozenset(part for step in steps for part in step)
                steps = [steps[rng.integers(len(steps))]]
            return _Item(
                found["id"],
                found["question"],
                tuple(found["answers"]),
                tuple(map(tuple, steps)),
                tuple(found["negatives"]),
                also,
            )
        title, text = self._passages["title"][row].as_py(), self._passages["text"][row].as_py()
        id = f"{task}/{self._passages['id'][row].as_py()}/{row}"
        if task == "title":
            return _Item(id, title, (), ((row,),), shown=((row, text),))
        parts = sentences(text)
        long = [i for i, part in enumerate(parts) if count_words(part) >= _SHORTEST_SENTENCE]
        if len(parts) < 2 or not long:
            return None
        asked = long[rng.integers(len(long))]
        rest = "".join(parts[:asked] + parts[asked + 1 :]).strip()
        shown = () if rng.random() < _KEEP_CLOZE else ((row, shown_text(title, rest)),)
        return _Item(id, parts[asked].strip(), (), ((row,),), shown=shown)

    def _text(self, row: int) -> str:
        return shown_text(*(self._passages[column][row].as_py() for column in ("title", "text")))

    def _members(
        self, items: list[_Item], documents: int, rng: np.random.Generator
    ) -> tuple[list[_Item], list[int]]:
        """The questions that fit, and the rows of the bank's documents."""
        chosen: dict[int, None] = {}
        kept = []
        for item in items:
            if len(chosen.keys() | item.positives) <= documents:
                chosen |= dict.fromkeys(sorted(item.positives))
                kept.append(item)
        hard = self.config.negatives.count
        for item in kept:
            for row in rng.permutation(np.array(item.negatives, dtype=np.int64))[:hard].tolist():
                if len(chosen) < documents:
                    chosen[row] = None
        while len(chosen) < documents:
            drawn = rng.integers(len(self._passages), size=2 * (documents - len(chosen)))
            chosen |= dict.fromkeys(drawn.tolist()[: documents - len(chosen)])
        return kept, list(chosen)

    def _numbered(
        self, items: list[_Item], members: list[int], rng: np.random.Generator
    ) -> DrawnBank:
        numbers = dict(zip(members, self.numbers.draw(rng, len(members)).tolist(), strict=True))
        shown = {row: self._text(row) for row in members}
        for item in items:
            shown.update(item.shown)
        documents = (
            Document(number, shown[row], self._passages["id"][row].as_py())
            for row, number in numbers.items()
        )
        return DrawnBank.of(documents, (_query(item, numbers, shown) for item in items))


def _query(item: _Item, numbers: dict[int, int], shown: dict[int, str]) -> Query:
    """The question with document numbers; what else may answer it is masked."""
    positives = item.positives
    texts = {shown[row] for row in positives}
    also = (
        row
        for row in numbers
        if row not in positives
        and (row in item.also or shown[row] in texts or holds_answer(shown[row], item.answers))
    )
    also = tuple(sorted(numbers[row] for row in also))
    hard = (numbers[row] for row in item.negatives if row in numbers)
    steps = tuple(tuple(sorted(numbers[row] for row in step)) for step in item.steps)
    return Query(
        item.question,
        item.answers,
        tuple(sorted(numbers[row] for row in positives)),
        id=item.id,
        steps=steps if len(steps) > 1 else (),
        masked=also,
        hard=tuple(number for number in dict.fromkeys(hard) if number not in also),
    )


def whole_bank(tables: Path, numbers: NumberConfig, rng: np.random.Generator) -> DrawnBank:
    """All documents of a dataset, and every question of the tables' split, in random order."""
    passages, questions = (open_table(tables / name) for name in (PASSAGES, QUESTIONS))
    drawn = numbers.draw(rng, len(passages)).tolist()
    rows = zip(drawn, passages.to_pylist(), strict=True)
    documents = [Document(n, shown_text(row["title"], row["text"]), row["id"]) for n, row in rows]
    queries = [
        Query(
            row["question"],
            tuple(row["answers"]),
            tuple(sorted(drawn[part] for step in row["steps"] for part in step)),
            id=row["id"],
        )
        for row in questions.to_pylist()
    ]
    order = rng.permutation(len(queries)).tolist()
    return DrawnBank.of(documents, (queries[place] for place in order))
