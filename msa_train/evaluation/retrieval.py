"""Who finds the right documents: routers, word search, a dense retriever and both together.

All rank the same documents for the same questions. A router is scored on cached means, which are
what a bank's keys are projected from (msa_train/router/means.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.bm25 import BM25
from data_pipeline.schema import Document
from msa_train.errors import ConfigError
from msa_train.evaluation.dense import DenseRetriever
from msa_train.evaluation.metrics import RECALL_AT, Bootstrap
from msa_train.evaluation.pooling import Pool
from msa_train.interop.export import ON_CPU, LoadedModel, Placement, load_export
from msa_train.memory.search.hybrid import fused_scores, sample
from msa_train.router.examples import RouterExamples, read_examples
from msa_train.router.exports import cached_examples, router_projections
from msa_train.router.fit import CachedExamples, Voter, check_pooled

_OTHERS = ("BM25", "dense", "random router")  # methods beside the exports
_SCORED = 128  # questions that are scored at once
Scores = Callable[[slice], Tensor]  # of some questions, [m, n] of all documents


def compare_retrieval(
    exports: Sequence[Path],
    corpora: Sequence[str],
    split: str,
    keep: Path | None = None,
    placed: Placement = ON_CPU,
    dense: Path | None = None,
    seed: int = 0,
    pooled: bool = False,
    per_layer: bool = False,
) -> dict[str, Any]:
    """A report: {"corpora": {name: {"documents", "questions", "recall": {method: row}}}}.

    pooled: every corpus's questions are asked of all corpora in one bank. per_layer: each router
    layer alone is a method too ("EXPORT, layer 5").

    A row has "recall@1", "recall@5", "recall@16" (any right document among the first so many) and
    "interval@..." (95 %, bootstrap over the questions). Methods: each export by its folder's name,
    the same with BM25 (as `--hybrid bm25` serves it), BM25, `dense` where a sentence encoder is
    given, and a random router: the last export's, with every chunk under another's key.
    """
    _refuse_repeated([export.name for export in exports], "exports of the name")
    _refuse_repeated(corpora, "the corpus")
    encoder = None if dense is None else DenseRetriever(dense)
    tokenizer = load_export(exports[0], placed).tokenizer
    given = [read_examples(source, tokenizer, split, seed=seed) for source in corpora]
    found = {}
    for examples, texts, cached in _banks(given, pooled, encoder, keep):
        asked = methods(exports, examples, texts, cached, placed, seed, per_layer)
        found[examples.name] = {
            "documents": len(examples.documents),
            "questions": len(examples.pairs),
            "recall": {name: _row(scores, examples, seed) for name, scores in asked},
        }
    return {
        "split": split,
        "compute": placed.compute,
        "seed": seed,
        "pooled": pooled,
        "corpora": found,
    }


class Texts:
    """Documents as word search finds them, and, where there is an `encoder`, as it does."""

    def __init__(self, documents: Sequence[Document], encoder: DenseRetriever | None = None):
        texts = [document.text for document in documents]
        self.words, self.encoder = BM25.of(texts), encoder
        self.embedded = None if encoder is None else encoder.embed(texts)


def _banks(
    given: Sequence[RouterExamples],
    pooled: bool,
    encoder: DenseRetriever | None,
    keep: Path | None,
) -> Iterator[tuple[RouterExamples, Texts, Callable[[LoadedModel], CachedExamples]]]:
    """Each corpus's questions about its bank, and how their means are found."""
    if not pooled:
        for each in given:
            means = partial(cached_examples, examples=each, keep=keep)
            yield each, Texts(each.documents, encoder), means
        return
    pool = Pool(given)
    texts = Texts(pool.documents, encoder)
    for corpus in range(len(given)):
        yield pool.examples(corpus), texts, partial(pool.cached, corpus, keep=keep)


def methods(
    exports: Sequence[Path],
    examples: RouterExamples,
    texts: Texts,
    cached_of: Callable[[LoadedModel], CachedExamples],
    placed: Placement,
    seed: int = 0,
    per_layer: bool = False,
) -> Iterator[tuple[str, Scores]]:
    """(name, scores of the examples' questions) of each, as compare_retrieval names them.

    texts: of the examples' documents. cached_of: their means, and those of their questions.
    """
    questions = [pair.question for pair in examples.pairs]
    words, everything = texts.words, np.arange(len(examples.documents))

    def lexical(rows: slice) -> Tensor:
        return torch.from_numpy(np.stack(list(words.scores(everything, questions[rows]))))

    cached: Mapping[str, Any] = {}
    for export in exports:
        loaded = load_export(export, placed)
        config = loaded.model.config
        check_pooled(config, f"the router of {export}")
        weights = router_projections(export)
        cached = cached_of(loaded)
        each = {layer: _voter(config, {layer: pair}, cached) for layer, pair in weights.items()}
        yield export.name, _voted(each.values())
        if per_layer:
            yield from ((f"{export.name}, layer {layer}", alone) for layer, alone in each.items())
        yield f"{export.name} + BM25", _together(each.values(), lexical, config.router.top_k)
    yield "random router", _voter(config, weights, _misrouted(cached, seed))
    yield "BM25", lexical
    if texts.encoder is not None:
        queries = texts.encoder.embed(questions)
        yield "dense", lambda rows: queries[rows] @ texts.embedded.T


def _refuse_repeated(names: Sequence[str], what: str) -> None:
    """Rows of a report go by name: of two with the same, one would be lost."""
    for name in (*_OTHERS, *names):
        if (*_OTHERS, *names).count(name) > 1:
            raise ConfigError(f"{what} {name!r} stand twice: give each a name of its own")


def _voter(config: Any, weights: Any, cached: CachedExamples) -> Scores:
    voter = Voter(config, weights, cached.documents)

    def scores(rows: slice) -> Tensor:
        return voter(cached.part(range(*rows.indices(len(cached.positives)))).questions)

    return scores


def _voted(layers: Collection[Scores]) -> Scores:
    return lambda rows: torch.stack([layer(rows) for layer in layers]).mean(0)


def _together(layers: Collection[Scores], lexical: Scores, top_k: int) -> Scores:
    """As a served memory ranks them (memory/engine/hybrid.py): -inf for what is no candidate.

    Candidates are the top_k of each router layer and of BM25, there those with a word of the
    question.
    """

    def scores(rows: slice) -> Tensor:
        each, words = [layer(rows) for layer in layers], lexical(rows)
        chosen = torch.stack([_among_best(scores, top_k) for scores in each]).any(0)
        outside = ~(chosen | (_among_best(words, top_k) & (words > 0)))
        votes = torch.stack(each).mean(0)
        sampled = votes[:, sample(torch.arange(votes.shape[1]))]
        return fused_scores(votes, sampled, words, words).masked_fill(outside, -torch.inf)

    return scores


def _among_best(scores: Tensor, k: int) -> Tensor:
    """[m, n] bool: the k largest of each row; equal scores: the lower place first."""
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)


def _misrouted(cached: CachedExamples, seed: int) -> CachedExamples:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(int(cached.documents.cu[-1]), generator=generator)
    rows = {layer: x[order] for layer, x in cached.documents.rows.items()}
    return replace(cached, documents=replace(cached.documents, rows=rows))


@torch.no_grad()
def ranked(method: Scores, questions: int, most: int) -> Iterator[list[int]]:
    """Places of the best documents for each question; equal scores: the lower one first. One with
    a score of -inf was not found."""
    for first in range(0, questions, _SCORED):
        scores = method(slice(first, first + _SCORED))
        best, places = (x[:, :most] for x in scores.sort(dim=1, descending=True, stable=True))
        for row, there in zip(places, best > -torch.inf, strict=True):
            yield row[there].tolist()


def _row(method: Scores, examples: RouterExamples, seed: int) -> dict[str, Any]:
    """Recall of a method."""
    found = np.zeros((len(RECALL_AT), len(examples.pairs)))
    most = min(max(RECALL_AT), len(examples.documents))
    for place, row in enumerate(ranked(method, len(examples.pairs), most)):
        right = [document in examples.pairs[place].documents for document in row]
        found[:, place] = [any(right[:k]) for k in RECALL_AT]
    bootstrap, row = Bootstrap(len(examples.pairs), seed=seed), {}
    for k, values in zip(RECALL_AT, found, strict=True):
        row[f"recall@{k}"] = round(float(values.mean()), 4)
        row[f"interval@{k}"] = [round(x, 4) for x in bootstrap.interval(values)]
    return row
