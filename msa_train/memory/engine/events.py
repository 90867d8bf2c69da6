"""What the engine reports while it works, and at the end: selections, rounds, the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data_pipeline.schema import Document
from msa_train.memory.search.view import MemoryView
from msa_train.model.attention import SelectedChunks

Ranking = list[tuple[int, float]]  # (document number, score), best first


class SelectedDocument(NamedTuple):
    """A document that a router layer selected.

    chunk: which of its chunks (from 0) scored best, None where scores are no single products.
    gate: what the gate adds to the attention logits of that chunk, None without a gate.
    """

    number: int
    score: float
    chunk: int | None
    gate: float | None


class FusedDocument(NamedTuple):
    """A candidate of the router or of word search, with what either says of it.

    score: the sum of both as z-scores, by which it is ranked. vote: the mean over router layers of
    its score, also where no layer selected it. bm25: its score by words, 0 where it has none.
    """

    number: int
    score: float
    vote: float
    bm25: float


@dataclass(frozen=True)
class Selection:
    """What the routing of one context selected.

    layers: router layer -> its selected documents, best first. voted: the union of the layers'
    selections, ranked by the mean over router layers of the document score (SPEC section 2). fused:
    the same with the best by words, where they choose too (hybrid.py); None where they do not.
    """

    layers: dict[int, list[SelectedDocument]]
    voted: Ranking
    fused: list[FusedDocument] | None = None

    @property
    def ranking(self) -> list[int]:
        """Document numbers, best first, in the order in which their texts are read."""
        return [number for number, *_ in (self.voted if self.fused is None else self.fused)]


def selections(selected: Mapping[int, SelectedChunks], view: MemoryView) -> list[Selection]:
    """A Selection per context, from what a prefill read in each router layer."""
    routings = {layer: found.routing for layer, found in selected.items()}
    union = [
        torch.cat(rows).unique()
        for rows in zip(*(r.documents.cpu() for r in routings.values()), strict=True)
    ]
    places = pad_sequence([row[row >= 0] for row in union], batch_first=True, padding_value=-1)
    scores = [
        view.searcher.score(layer, routing.query, routing.query_cu, places)
        for layer, routing in routings.items()
    ]
    mean, order = torch.stack(scores).mean(0).sort(dim=1, descending=True, stable=True)
    numbers = _numbers(view, places.gather(1, order))
    layers = {layer: _documents(found, view) for layer, found in selected.items()}
    return [
        Selection(
            {layer: rows[context] for layer, rows in layers.items()},
            [(n, s) for n, s in zip(numbers[context], row, strict=True) if n >= 0],
        )
        for context, row in enumerate(mean.tolist())
    ]


def _documents(found: SelectedChunks, view: MemoryView) -> list[list[SelectedDocument]]:
    """Each context's selected documents in one layer."""
    routing = found.routing
    nothing = [[None] * routing.documents.shape[1]] * len(routing.documents)
    chunks = gates = nothing
    if routing.best_chunks is not None:
        best = routing.best_chunks()
        chunks = best.tolist()
        gates = nothing if found.bias is None else _gates(found, best, view).tolist()
    columns = _numbers(view, routing.documents.cpu()), routing.values.tolist(), chunks, gates
    return [
        [SelectedDocument(*each) for each in zip(*rows, strict=True) if each[0] >= 0]
        for rows in zip(*columns, strict=True)
    ]


def _gates(found: SelectedChunks, best: Tensor, view: MemoryView) -> Tensor:
    """[m, k] what the gate adds for the best chunk of each selected document."""
    routing = found.routing
    documents, chunks = routing.documents.cpu(), best.clamp(min=0)
    ordered, order = documents.sort(1)
    counts = view.chunk_counts[ordered.clamp(min=0)].masked_fill(ordered < 0, 0)
    begin = counts.cumsum(1) - counts + routing.index_cu.cpu()[:-1, None]
    first = torch.empty_like(begin).scatter_(1, order, begin)
    bias = torch.nn.functional.pad(found.bias.detach().float().cpu(), (0, 1))  # for no document
    return bias[(first + chunks).masked_fill(documents < 0, len(bias) - 1)]


def _numbers(view: MemoryView, places: Tensor) -> list[list[int]]:
    """Document numbers of places in the view, -1 for none."""
    if not len(view.numbers):
        return torch.full_like(places, -1).tolist()
    return view.numbers[places.clamp(min=0)].masked_fill(places < 0, -1).tolist()


@dataclass(frozen=True)
class RoundReport:
    """A prefill and what followed: the selection, the ids written, the documents appended."""

    chosen: Selection
    written: str = ""
    evidence: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A finished answer.

    answer: the text without the phrase before it. text: as written. rounds: one per prefill; the
    last one is the answer's. forced: why the engine ended a stage, if it did. seconds: from the
    request to this answer. cut: it is incomplete, because of a limit or for lack of room. unasked:
    there was no document to answer from, so the model was not asked; the text says so.
    prompt_tokens: of the first prompt. tokens: all that the model wrote; answer_tokens: those of
    the answer. ids: the answer's tokens with the control token that ended it, not in the JSON.
    """

    question: str
    mode: str
    answer: str
    text: str
    rounds: tuple[RoundReport, ...]
    forced: tuple[str, ...]
    seconds: float
    cut: bool = False
    prompt_tokens: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    ids: tuple[int, ...] = ()
    unasked: bool = False

    @property
    def evidence(self) -> tuple[int, ...]:
        """Numbers of all documents whose texts were appended, ascending."""
        return tuple(sorted({number for each in self.rounds for number in each.evidence}))

    def to_json(self) -> dict[str, Any]:
        found = {**asdict(self), "evidence": self.evidence}
        del found["ids"]  # of one tokenizer; the text is there
        return found


@dataclass(frozen=True)
class Routed:
    """A round begins: its documents are selected."""

    round: int
    chosen: Selection


@dataclass(frozen=True)
class TextPiece:
    """The model wrote more text."""

    stage: Literal["ids", "answer"]
    text: str


@dataclass(frozen=True)
class Evidence:
    """The engine appended these documents, in this order (empty: no known id was written)."""

    documents: tuple[Document, ...]


@dataclass(frozen=True)
class Finished:
    """The last event of an answer."""

    answer: Answer


@dataclass(frozen=True)
class Failed:
    """The last event of a request that ends without an answer; others go on."""

    error: Exception


Event = Routed | TextPiece | Evidence | Finished | Failed
