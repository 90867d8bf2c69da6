"""What the engine reports: routing, rounds, events while it works, and the answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from data_pipeline.schema import Document
from msa_train.model.router import Routing

Ranking = list[tuple[int, float]]  # (document number, score), best first


@dataclass(frozen=True)
class Chosen:
    """What one context's routing chose.

    layers: router layer -> its selected documents. voted: the union of the layers' selections,
    ranked by the mean over router layers of the document score (SPEC section 2).
    """

    layers: dict[int, Ranking]
    voted: Ranking


def chosen_documents(routings: dict[int, Routing], numbers: Tensor) -> list[Chosen]:
    """A Chosen per context; numbers [n] of the memory's documents, ascending."""
    contexts = len(next(iter(routings.values())).documents)
    return [_chosen(routings, numbers, context) for context in range(contexts)]


def _chosen(routings: dict[int, Routing], numbers: Tensor, context: int) -> Chosen:
    layers, candidates = {}, set()
    for layer, routing in routings.items():
        places = [place for place in routing.documents[context].tolist() if place >= 0]
        layers[layer] = _ranking(numbers, places, routing.values[context])
        candidates.update(places)
    places = torch.tensor(sorted(candidates), dtype=torch.int64)
    scores = [_scores(routing)[context, places] for routing in routings.values()]
    mean, order = torch.stack(scores).mean(0).sort(descending=True, stable=True)
    return Chosen(layers, _ranking(numbers, places[order].tolist(), mean))


def _scores(routing: Routing) -> Tensor:
    assert routing.document_scores is not None, "the vote needs scores of every candidate"
    return routing.document_scores


def _ranking(numbers: Tensor, places: list[int], scores: Tensor) -> Ranking:
    return [
        (int(numbers[place]), score) for place, score in zip(places, scores.tolist(), strict=False)
    ]


@dataclass(frozen=True)
class RoundReport:
    """A prefill and what followed: what was routed, the ids written, the evidence appended."""

    chosen: Chosen
    written: str = ""
    evidence: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """rounds: one per prefill; the last one is the answer's. forced: why the engine ended a stage
    by itself, if it did. text: the answer as written; answer: without the phrase before it.
    seconds: from the call until this answer was complete (shared with what was asked with it)."""

    question: str
    mode: str
    answer: str
    text: str
    rounds: tuple[RoundReport, ...]
    forced: tuple[str, ...]
    seconds: float

    @property
    def evidence(self) -> tuple[int, ...]:
        """Numbers of all documents whose texts were appended, ascending."""
        return tuple(sorted({number for each in self.rounds for number in each.evidence}))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "evidence": self.evidence}


@dataclass(frozen=True)
class Routed:
    """A round begins: its documents were chosen."""

    round: int
    chosen: Chosen


@dataclass(frozen=True)
class TextPiece:
    """The model wrote more text."""

    stage: Literal["ids", "answer"]
    text: str


@dataclass(frozen=True)
class Evidence:
    """The engine appended these documents, in this order (none: no known id was written)."""

    documents: tuple[Document, ...]


@dataclass(frozen=True)
class Finished:
    answer: Answer


Event = Routed | TextPiece | Evidence | Finished
