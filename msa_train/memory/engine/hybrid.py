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
    best = [torch.empty(0).long() if w is None else w.best(view.router.top_k) for w in words]
    numbers = [torch.tensor([n for n, _ in each.voted], dtype=torch.int64) for each in chosen]
    voted = [torch.searchsorted(view.numbers, each) for each in numbers]
    alone = [found[~torch.isin(found, known)] for found, known in zip(best, voted, strict=True)]
    votes = _votes(selected, view, alone)
    return [
        each if w is None else _fused(each, view, w, (its, more), vote)
        for each, w, its, more, vote in zip(chosen, words, voted, alone, votes, strict=True)
    ]


def _votes(
    selected: Mapping[int, SelectedChunks], view: MemoryView, alone: Sequence[Tensor]
) -> list[Tensor]:
    """For each context, the mean over router layers of the scores of documents, by place."""
    places = pad_sequence(list(alone), batch_first=True, padding_value=-1)
    if not places.numel():
        return [torch.empty(0) for _ in alone]
    routings = {layer: found.routing for layer, found in selected.items()}
    scores = [
        view.searcher.score(layer, routing.query, routing.query_cu, places)
        for layer, routing in routings.items()
    ]
    rows = torch.stack(scores).mean(0)
    return [row[: len(each)] for row, each in zip(rows, alone, strict=True)]


def _fused(
    chosen: Selection,
    view: MemoryView,
    words: WordScores,
    places: tuple[Tensor, Tensor],
    more: Tensor,
) -> Selection:
    """places: of the voted documents, and of those that words found alone, whose votes are `more`.

    Equal scores: the lower number first.
    """
    found, order = torch.cat(places).sort()
    votes = torch.cat([torch.tensor([score for _, score in chosen.voted]), more])[order]
    bm25 = words.at(found)
    total, best = fused_scores(votes, bm25).sort(descending=True, stable=True)
    columns = view.numbers[found][best], total, votes[best], bm25[best]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return replace(chosen, fused=[FusedDocument(*row) for row in rows])
