"""Fitting a router to a frozen backbone, on cached means alone (SPEC section 8).

The backbone is not run: a step is one product of small matrices, and minutes are enough.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.progress import ProgressBar
from msa_train.errors import ConfigError
from msa_train.memory.search.keys import chunks_of
from msa_train.model.config import ModelConfig
from msa_train.model.losses import router_loss_sum
from msa_train.model.weights import projection_names
from msa_train.router.means import LayerMeans
from msa_train.router.settings import RECALL_AT, FitSettings
from msa_train.router.whitening import whitening

_SCORED = 256  # questions that are scored at once


@dataclass(frozen=True)
class CachedExamples:
    """The means of a corpus and of its questions; positives: documents that answer each."""

    name: str
    documents: LayerMeans
    questions: LayerMeans
    positives: tuple[tuple[int, ...], ...]

    def part(self, rows: Sequence[int]) -> CachedExamples:
        """Some of the questions, of all documents."""
        chosen = {layer: x[list(rows)] for layer, x in self.questions.rows.items()}
        questions = LayerMeans(chosen, torch.arange(len(rows) + 1))
        return replace(
            self, questions=questions, positives=tuple(self.positives[row] for row in rows)
        )

    def mapped(self, change: Mapping[int, Tensor]) -> CachedExamples:
        """All means of a layer multiplied by its matrix [d, d]."""

        def of(means: LayerMeans) -> LayerMeans:
            rows = {layer: x @ change[layer].T for layer, x in means.rows.items()}
            return LayerMeans(rows, means.cu)

        return replace(self, documents=of(self.documents), questions=of(self.questions))


Projections = Mapping[int, tuple[Tensor, Tensor]]  # router layer -> weights of queries and of keys


class Voter:
    """What router layers vote for the documents of one bank, whose keys are projected once."""

    def __init__(self, config: ModelConfig, weights: Projections, documents: LayerMeans):
        self._scoring, self._head_dim = config.router.scoring, config.router_head_dim
        self._heads = config.router_key_heads, config.router_heads
        self._queries = {layer: queries for layer, (queries, _) in weights.items()}
        self._keys = {
            layer: self._scoring.key_vectors(self._projected(documents, layer, keys))
            for layer, (_, keys) in weights.items()
        }
        self._cu = documents.cu

    def __call__(self, questions: LayerMeans) -> Tensor:
        """[m, n]: for each of the documents, the mean of the layers' scores."""
        each, total = torch.arange(len(questions) + 1), 0.0
        bank_of = torch.zeros(len(questions), dtype=torch.int64)
        bank_cu = torch.tensor([0, len(self._cu) - 1])
        for layer, queries in self._queries.items():
            rq = self._projected(questions, layer, queries)
            query, query_cu = self._scoring.query_vectors(rq, each, *self._heads)
            total = total + self._scoring.document_scores(
                query, query_cu, self._keys[layer], self._cu, bank_of, bank_cu
            )
        return total / len(self._queries)

    def _projected(self, means: LayerMeans, layer: int, weight: Tensor) -> Tensor:
        return (means.rows[layer] @ weight.T).unflatten(1, (-1, self._head_dim))


@torch.no_grad()
def recalls(config: ModelConfig, weights: Projections, examples: CachedExamples) -> list[float]:
    """Share of questions with one of their documents among the first 1, 5 and 16."""
    found = torch.zeros(len(RECALL_AT))
    count, voter = len(examples.positives), Voter(config, weights, examples.documents)
    for first in range(0, count, _SCORED):
        part = examples.part(range(first, min(first + _SCORED, count)))
        scores = voter(part.questions)
        best = scores.topk(min(max(RECALL_AT), scores.shape[1]), 1).indices.tolist()
        for row, positives in zip(best, part.positives, strict=True):
            place = next((i for i, document in enumerate(row) if document in positives), math.inf)
            found += torch.tensor([place < k for k in RECALL_AT])
    return [round(float(x) / count, 4) for x in found]


@dataclass
class Fitted:
    """The best weights by published name, and how they came about.

    looks: (step, {corpus: recall@1, 5, 16 of its held-out questions}), the first before any step.
    best: the step of the weights. losses: of every step.
    """

    weights: dict[str, Tensor]
    looks: list[tuple[int, dict[str, list[float]]]] = field(default_factory=list)
    best: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def fit(
    config: ModelConfig,
    start: Projections,
    corpora: Sequence[CachedExamples],
    settings: FitSettings,
) -> Fitted:
    """Fit the router whose weights are `start` to questions of some corpora.

    It is learned in whitened coordinates, where every direction is as large as every other: outside
    of them it overfits. Raises ConfigError as check_pooled, and for a corpus with fewer than two
    questions.
    """
    check_pooled(config)
    return _Fit(config, start, corpora, settings).run()


def check_pooled(config: ModelConfig, router: str = "model.router") -> None:
    """Raises ConfigError for a router whose scores do not follow from means of states.

    router: what it is called in the message. A question's states above a layer that reads depend on
    what was found there.
    """
    if config.router.query_reduce != "pooled" or not config.router.decouple:
        raise ConfigError(
            f"{router} has query_reduce {config.router.query_reduce!r} and decouple "
            f"{config.router.decouple}: only pooled queries of a router with projections of its "
            "own follow from means; make one with `msa router start`"
        )
    if early := [layer for layer in config.reading_layers if layer < config.last_router_layer]:
        raise ConfigError(
            f"{router} has reads {config.router.reads!r}: what layer {early[0]} reads changes "
            f"the queries of layer {config.last_router_layer}, which no mean of states tells; "
            "measure such a model with `msa eval`"
        )


class _Fit:
    """Weights as products B W: W whitens and stays, B is learned."""

    def __init__(
        self,
        config: ModelConfig,
        start: Projections,
        corpora: Sequence[CachedExamples],
        settings: FitSettings,
    ):
        self._config, self._settings = config, settings
        self._loss_settings = replace(config.router, temperature=settings.temperature)
        self._draw = random.Random(settings.seed)
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._layers = config.router_layers
        self._white = {
            layer: whitening(torch.cat([each.documents.rows[layer] for each in corpora]))
            for layer in self._layers
        }
        self._learned = {
            layer: tuple(
                torch.nn.Parameter(weight @ torch.linalg.inv(self._white[layer]))
                for weight in start[layer]
            )
            for layer in self._layers
        }
        self._training, self._held_out = [], []
        for each in corpora:
            self._divide(each.mapped(self._white))

    def _divide(self, examples: CachedExamples) -> None:
        rows = list(range(len(examples.positives)))
        if len(rows) < 2:
            raise ConfigError(f"{examples.name} has {len(rows)} questions: fitting needs two")
        self._draw.shuffle(rows)
        held = max(1, min(self._settings.held_out, len(rows) // 10))
        self._held_out.append(examples.part(sorted(rows[:held])))
        self._training.append(examples.part(sorted(rows[held:])))

    def run(self) -> Fitted:
        settings, began = self._settings, time.monotonic()
        found = Fitted({})
        parameters = [weight for pair in self._learned.values() for weight in pair]
        optimizer = torch.optim.AdamW(parameters, weight_decay=0.0, betas=(0.9, 0.98))
        best, waited = self._look(found, 0, -1.0), 0
        with ProgressBar("router fit", "steps", settings.steps) as bar:
            for step in range(1, settings.steps + 1):
                optimizer.param_groups[0]["lr"] = settings.lr * _pace(step, settings.steps)
                loss = self._loss()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                found.losses.append(float(loss.detach()))
                bar.advance(1)
                if step % settings.look_every and step < settings.steps:
                    continue
                reached = self._look(found, step, best)
                best, waited = max(best, reached), 0 if reached > best else waited + 1
                if waited == settings.patience:
                    break
        found.seconds = round(time.monotonic() - began, 1)
        return found

    def _look(self, found: Fitted, step: int, best: float) -> float:
        """Looks at held-out questions, and keeps the weights where they are the best so far."""
        looked = {each.name: recalls(self._config, self._learned, each) for each in self._held_out}
        found.looks.append((step, looked))
        reached = sum(map(sum, looked.values())) / (len(RECALL_AT) * len(looked))
        if reached > best:
            found.best = step
            found.weights = {
                name: (weight.detach() @ self._white[layer]).contiguous()
                for layer, pair in self._learned.items()
                for name, weight in zip(projection_names(layer), pair, strict=True)
            }
        return reached

    def _loss(self) -> Tensor:
        settings, examples = self._settings, self._draw.choice(self._training)
        count, documents = len(examples.positives), len(examples.documents)
        asked = self._draw.sample(range(count), min(settings.questions, count))
        needed = {place for row in asked for place in examples.positives[row]}
        drawn = self._draw.sample(range(documents), min(settings.documents, documents))
        bank = torch.tensor(sorted(needed.union(drawn)))
        part, chunks = examples.part(asked), chunks_of(bank, examples.documents.cu)
        counts = examples.documents.cu.diff()[bank]
        rows = {layer: x[chunks] for layer, x in examples.documents.rows.items()}
        kept = LayerMeans(self._dropped(rows), F.pad(counts.cumsum(0), (1, 0)))
        questions = LayerMeans(self._dropped(part.questions.rows), part.questions.cu)
        scores = Voter(self._config, self._learned, kept)(questions)
        place = {document: i for i, document in enumerate(bank.tolist())}
        positives = torch.zeros(len(asked), len(bank), dtype=torch.bool)
        for row, found in enumerate(part.positives):
            positives[row, [place[document] for document in found]] = True
        nothing = torch.zeros_like(positives)
        return router_loss_sum(scores, positives, nothing, self._loss_settings) / len(asked)

    def _dropped(self, rows: Mapping[int, Tensor]) -> dict[int, Tensor]:
        share = self._settings.dropout
        if not share:
            return dict(rows)
        kept = 1 - share
        return {
            layer: x * (torch.rand(x.shape, generator=self._generator) < kept) / kept
            for layer, x in rows.items()
        }


def _pace(step: int, steps: int) -> float:
    """Of the learning rate: a warm-up of a tenth, then a cosine from 1 to 0.05."""
    warm = min(1.0, step / max(1, steps // 10))
    return warm * (0.525 + 0.475 * math.cos(math.pi * step / steps))
