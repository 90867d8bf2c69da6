"""What is looked up in a served bank: documents by number or id, and by what routers choose."""

from __future__ import annotations

from typing import Any

import torch

from data_pipeline.protocol import prompt_pieces
from msa_train.memory.engine.engine import MemoryEngine
from msa_train.memory.engine.sequence import too_long
from msa_train.memory.search.view import MemoryView
from msa_train.serving.banks import ServedBank, ServedModel
from msa_train.serving.changes import named_errors, not_found
from msa_train.serving.chunks import chunk_spans
from msa_train.serving.schemas import Filter, Search, shown


def listed(bank: ServedBank, after: int, limit: int, id: str | None) -> dict[str, Any]:
    """Documents numbered above `after`, ascending; `next`: what to give as `after` for more."""
    bank.view()
    stored = bank.stored
    with named_errors(bank):
        if id is None:
            start = int(torch.searchsorted(stored.numbers, after, right=True))
            live = stored.live[start:].nonzero().squeeze(1)[: limit + 1] + start
            found = [int(stored.numbers[place]) for place in live.tolist()]
        else:
            found = [number for number in stored.numbers_of(id) if number > after][: limit + 1]
        documents = [shown(stored[number]) for number in found[:limit]]
    return {"documents": documents, "next": found[limit - 1] if len(found) > limit else None}


def document(bank: ServedBank, model: ServedModel, number: int) -> dict[str, Any]:
    """A document with the character span of each of its chunks. Raises ApiError 404."""
    bank.view()
    try:
        with named_errors(bank):
            found = bank.stored[number]
    except KeyError:
        raise not_found(bank, str(number)) from None
    size = bank.stored.manifest.form.chunk_size
    return {**shown(found), "chunks": chunk_spans(model.tokenizer, number, found.text, size)}


def restricted(view: MemoryView, only: Filter | None) -> MemoryView:
    """The view itself without a filter: questions to one view are searched together."""
    if only is None:
        return view
    return view.restricted(only.documents().allowed(view.documents))


def search(
    bank: ServedBank, model: ServedModel, asked: Search, context_tokens: int
) -> list[dict[str, Any]]:
    """What the routers choose for a text, best first; layers: the scores where it was chosen.

    Raises ConfigError for a text of more than context_tokens: its prefill would take what memory
    there is.
    """
    tokens = len(model.tokenizer.encode_pieces(prompt_pieces(asked.query)).tokens)
    if tokens >= context_tokens:
        raise too_long(tokens, context_tokens)
    with named_errors(bank):
        view = restricted(bank.view(), asked.filter)
        if not len(view):
            return []
        engine = MemoryEngine(model.model, model.tokenizer, view)
        chosen = engine.route([asked.query])[0]
        by_layer = {
            str(layer): {each.number: each.score for each in ranking}
            for layer, ranking in chosen.layers.items()
        }
        return [
            {
                **shown(view.documents[number]),
                "score": score,
                "layers": {
                    layer: scores[number] for layer, scores in by_layer.items() if number in scores
                },
            }
            for number, score in chosen.voted[: asked.limit]
        ]
