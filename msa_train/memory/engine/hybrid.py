"""The router's vote and BM25 together choose the texts to read (memory/search/hybrid.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from msa_train.memory.engine.events import FusedDocument, Selection
from msa_train.memory.search.hybrid import WordScores, fused_scores
from msa_train.memory.search.view import MemoryView
from msa_train.model.attention import SelectedChunks


def with_words(
    chosen: Sequence[Selection],
    selected: Mapping[int, SelectedChunks],
    view: MemoryView,
    questions: Sequence[str | None],
) -> list[Selection]:
    """The selections of a prefill, ranked with BM25 where there is a question (None: left as is).

    Candidates are the documents that the layers selected and the best so many by words; what the
    other search found alone is scored by both.
    """
    words = [None if each is None else WordScores.of(view, each) for each in questions]
    if all(each is None for each in words):
        return list(chosen)
    voted = [_places(each, view) for each in chosen]
    alone = [_unvoted(each, its, view) for each, its in zip(words, voted, strict=True)]
    nothing = torch.empty(0, dtype=torch.int64)
    samples = [nothing if each is None else each.sample for each in words]
    votes = _votes(selected, view, [torch.cat(pair) for pair in zip(alone, samples, strict=True)])
    return [
        each if its is None else _fused(each, view, its, places, vote)
        for each, its, places, vote in zip(
            chosen, words, zip(voted, alone, strict=True), votes, strict=True
        )
    ]


def _places(chosen: Selection, view: MemoryView) -> Tensor:
    """Of the voted documents, in their order."""
    numbers = torch.tensor([number for number, _ in chosen.voted], dtype=torch.int64)
    return torch.searchsorted(view.numbers, numbers)


def _unvoted(words: WordScores | None, voted: Tensor, view: MemoryView) -> Tensor:
    """Places of the best by words that are not among the voted."""
    if words is None:
        return voted[:0]
    best = words.best(view.router.top_k)
    return best[~torch.isin(best, voted)]


def _votes(
    selected: Mapping[int, SelectedChunks], view: MemoryView, places: Sequence[Tensor]
) -> list[Tensor]:
    """For each context, the mean over router layers of the scores of documents, by place."""
    padded = pad_sequence(list(places), batch_first=True, padding_value=-1)
    routings = {layer: found.routing for layer, found in selected.items()}
    scores = [
        view.searcher.score(layer, routing.query, routing.query_cu, padded)
        for layer, routing in routings.items()
    ]
    rows = torch.stack(scores).mean(0)
    return [row[: len(each)] for row, each in zip(rows, places, strict=True)]


def _fused(
    chosen: Selection,
    view: MemoryView,
    words: WordScores,
    places: tuple[Tensor, Tensor],
    votes: Tensor,
) -> Selection:
    """places: of the voted documents, and of those that words found alone; votes: of the latter,
    then of the sample. Equal scores: the lower number first."""
    found, order = torch.cat(places).sort()
    own, sampled = votes.split([len(places[1]), len(votes) - len(places[1])])
    vote = torch.cat([torch.tensor([score for _, score in chosen.voted]), own])[order]
    bm25 = words.at(found)
    total = fused_scores(vote, sampled, bm25, torch.from_numpy(words.scores))
    total, best = total.sort(descending=True, stable=True)
    columns = view.numbers[found][best], total, vote[best], bm25[best]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return replace(chosen, fused=[FusedDocument(*row) for row in rows])
