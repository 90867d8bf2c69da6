"""What is counted, per question, and how sure the averages are.

Every measure gives one number per question in 0..1; averages and bootstrap intervals are taken over
questions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from data_pipeline.schema import Query
from msa_train.router.settings import RECALL_AT

Columns = dict[str, np.ndarray]  # measure -> [questions] in 0..1
ARTICLES = frozenset(("a", "an", "the"))


def words(text: str) -> list[str]:
    """Lower-cased words; punctuation ends a word, articles are dropped unless nothing else is left.

    SQuAD's normalisation, except that SQuAD deletes punctuation: here `os.path.join` is three
    words, so that a half-right qualified name earns a part of F1.
    """
    every = re.findall(r"\w+", text.lower())
    return [word for word in every if word not in ARTICLES] or every


def exact_match(prediction: str, answer: str) -> float:
    return float(words(prediction) == words(answer))


def f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall of words, as in SQuAD; order does not count."""
    said, wanted = Counter(words(prediction)), Counter(words(answer))
    common = sum((said & wanted).values())
    if not common:
        return float(not said and not wanted)
    return 2 * common / (said.total() + wanted.total())


def elements(prediction: str) -> set[tuple[str, ...]]:
    """The parts of an enumeration "a, b and c", normalised."""
    parts = re.split(r",|\band\b", prediction)
    return {tuple(words(part)) for part in parts if words(part)}


def set_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the enumeration in `prediction` holds all answers and nothing else, in any order."""
    return float(elements(prediction) == {tuple(words(answer)) for answer in answers})


def element_recall(prediction: str, answers: Sequence[str]) -> float:
    """Fraction of the answers that occur in the prediction (RULER's string match, whole words)."""
    said = f" {' '.join(words(prediction))} "
    return float(np.mean([f" {' '.join(words(answer))} " in said for answer in answers]))


def answer_columns(name: str, said: Sequence[str], queries: Sequence[Query]) -> Columns:
    """How right answers are: `name` (exact), `name`_f1, and for lists `name`_recall.

    A list (Query.values) is exactly right if it names all values and nothing else, in any order.
    Where a question has several right answers the best counts.
    """
    rows = [_answer_row(text, query) for text, query in zip(said, queries, strict=True)]
    endings = ("", "_f1", "_recall") if queries[0].values else ("", "_f1")
    return {
        f"{name}{ending}": np.array([row[place] for row in rows])
        for place, ending in enumerate(endings)
    }


def _answer_row(said: str, query: Query) -> tuple[float, ...]:
    best_f1 = max(f1(said, answer) for answer in query.answers)
    if query.values:
        return set_match(said, query.values), best_f1, element_recall(said, query.values)
    return max(exact_match(said, answer) for answer in query.answers), best_f1


def recall_columns(
    ranked: Sequence[Sequence[int]], queries: Sequence[Query], prefix: str = ""
) -> Columns:
    """`prefix`recall@k of ranked document numbers, best first, for each question.

    Recall is the share of the positives found; any_found@k says whether one is, all_found@k
    whether none is missing.
    """
    columns: Columns = {}
    for k in RECALL_AT:
        found = [recall_at(row, q.positives, k) for row, q in zip(ranked, queries, strict=True)]
        columns[f"{prefix}recall@{k}"] = share = np.array(found)
        columns[f"{prefix}any_found@{k}"] = (share > 0).astype(float)
        columns[f"{prefix}all_found@{k}"] = (share == 1).astype(float)
    return columns


def id_columns(written: Sequence[Sequence[int]], queries: Sequence[Query]) -> Columns:
    """ids_precision, ids_recall, ids_f1 of the document numbers the model wrote."""
    rows = [precision_recall_f1(w, q.positives) for w, q in zip(written, queries, strict=True)]
    names = ("ids_precision", "ids_recall", "ids_f1")
    return dict(zip(names, np.array(rows).T, strict=True))


def recall_at(ranked: Sequence[int], positives: Sequence[int], k: int) -> float:
    """Fraction of the positive documents among the first k ranked ones."""
    return len(set(positives) & {int(number) for number in ranked[:k]}) / len(positives)


def precision_recall_f1(
    written: Sequence[int], positives: Sequence[int]
) -> tuple[float, float, float]:
    """Of the document numbers the model wrote; nothing written has precision 0."""
    said, wanted = set(written), set(positives)
    common = len(said & wanted)
    precision, recall = common / max(len(said), 1), common / len(wanted)
    return precision, recall, 2 * common / (len(said) + len(wanted))


class Bootstrap:
    """95 % percentile intervals from `resamples` draws of n questions with replacement.

    Every measure meets the same draws, so that differences between measures over the same
    questions are paired.
    """

    def __init__(self, n: int, resamples: int = 2000, seed: int = 0):
        if n < 1:
            raise ValueError("a bootstrap needs at least one question")
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
        self._weights = counts / n  # [resamples, n]

    @property
    def n(self) -> int:
        return self._weights.shape[1]

    def interval(self, values: np.ndarray) -> tuple[float, float]:
        """Of the mean of values [n]."""
        return self._between(self._weights @ values)

    def relative_loss(
        self, before: np.ndarray, after: np.ndarray
    ) -> tuple[float, float, float] | None:
        """1 - mean(after) / mean(before) with its paired interval; None where before is all 0."""
        if not before.any():
            return None
        old, new = self._weights @ before, self._weights @ after
        alive = old > 0
        low, high = self._between(1 - new[alive] / old[alive])
        return float(1 - after.mean() / before.mean()), low, high

    def _between(self, drawn: np.ndarray) -> tuple[float, float]:
        low, high = np.percentile(drawn, (2.5, 97.5))
        return float(low), float(high)
