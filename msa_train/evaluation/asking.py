"""Questions asked of a model through the memory engine, or of BM25, and what is counted of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.bm25 import BM25
from data_pipeline.protocol import parse_ids
from data_pipeline.schema import Query
from data_pipeline.tokenizer import Tokenizer
from msa_train.evaluation.metrics import (
    RECALL_AT,
    Columns,
    answer_columns,
    id_columns,
    recall_columns,
)
from msa_train.memory.engine.engine import MemoryEngine
from msa_train.memory.engine.events import Answer, Selection
from msa_train.memory.engine.interleave import InterleaveLimits
from msa_train.memory.search.view import MemoryView
from msa_train.model.decoder import MSADecoder

# Far above what a right answer needs: a model that rambles must not cost the whole evaluation.
LIMITS = InterleaveLimits(rounds=3, retrieval_characters=200, answer_tokens=48)


@dataclass(frozen=True)
class Asker:
    """A model that is asked; batch_contexts questions at once."""

    model: MSADecoder
    tokenizer: Tokenizer
    batch_contexts: int

    def routing(self, view: MemoryView, queries: Sequence[Query]) -> Columns:
        """Recall of what the router selects, per layer and voted."""
        return _recalls(self._engine(view).route(_questions(queries)), queries)

    def ranked(self, view: MemoryView, queries: Sequence[Query]) -> list[list[int]]:
        """Document numbers that the router's layers vote for, best first."""
        return [_numbers(each.voted) for each in self._engine(view).route(_questions(queries))]

    def from_memory(self, view: MemoryView, queries: Sequence[Query]) -> Columns:
        """Answers from pooled memory alone."""
        return answer_columns("answer_memory", _texts(self._ask(view, queries, "memory")), queries)

    def from_memory_with_routing(self, view: MemoryView, queries: Sequence[Query]) -> Columns:
        """Both of one pass: routing happens at the prompt, whatever follows it."""
        answers = self._ask(view, queries, "memory")
        recalls = _recalls([answer.rounds[0].chosen for answer in answers], queries)
        return recalls | answer_columns("answer_memory", _texts(answers), queries)

    def with_texts(self, view: MemoryView, queries: Sequence[Query]) -> Columns:
        """Memory Interleave: the ids the model wrote, and its answers after reading the texts."""
        answers = self._ask(view, queries, "generate")
        written = [_written(answer) for answer in answers]
        return id_columns(written, queries) | answer_columns(
            "answer_text", _texts(answers), queries
        )

    def with_voted_texts(self, view: MemoryView, queries: Sequence[Query]) -> Columns:
        """Answers after reading the texts of the documents that the router's layers vote for."""
        answers = self._ask(view, queries, "router")
        return answer_columns("answer_voted_text", _texts(answers), queries)

    def _ask(self, view: MemoryView, queries: Sequence[Query], mode) -> list[Answer]:
        return self._engine(view).ask(_questions(queries), mode, LIMITS)

    def _engine(self, view: MemoryView) -> MemoryEngine:
        return MemoryEngine(self.model, self.tokenizer, view, self.batch_contexts)


def bm25_recalls(
    bm25: BM25, part: np.ndarray, numbers: np.ndarray, queries: Sequence[Query]
) -> Columns:
    """bm25_recall@k: what word overlap alone achieves over the very bank that the model reads.

    part [n]: places of the bank's documents; numbers [texts]: of all documents.
    """
    ranked = bm25.rank(part, [query.question for query in queries], max(RECALL_AT))
    return recall_columns(numbers[ranked].tolist(), queries, "bm25_")


def joined(parts: Iterable[Columns]) -> Columns:
    """Each column over the questions of all parts that have it."""
    found: dict[str, list[np.ndarray]] = {}
    for part in parts:
        for name, values in part.items():
            found.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in found.items()}


def _questions(queries: Sequence[Query]) -> list[str]:
    return [query.question for query in queries]


def _texts(answers: Sequence[Answer]) -> list[str]:
    return [answer.answer for answer in answers]


def _written(answer: Answer) -> list[int]:
    """All document numbers the model wrote, also those of no document."""
    return parse_ids("".join(each.written for each in answer.rounds), known=lambda number: True)


def _recalls(chosen: Sequence[Selection], queries: Sequence[Query]) -> Columns:
    columns = recall_columns([_numbers(each.voted) for each in chosen], queries)
    for layer in chosen[0].layers:
        ranked = [_numbers(each.layers[layer]) for each in chosen]
        columns |= recall_columns(ranked, queries, f"layer{layer}/")
    return columns


def _numbers(ranking: Sequence[tuple]) -> list[int]:
    return [number for number, *_ in ranking]
