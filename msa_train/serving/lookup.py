"""Documents of a bank looked up: by number, id, filter or words, with their chunks, and as the
routers choose."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.protocol import document_pieces, prompt_pieces
from data_pipeline.tokenizer import Tokenizer
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.words import with_words
from msa_train.memory.engine.engine import MemoryEngine
from msa_train.memory.engine.sequence import too_long
from msa_train.memory.search.view import MemoryView
from msa_train.serving.banks import ServedBank, ServedModel
from msa_train.serving.schemas import Filter, Listing, Matching, Search, document_json
from msa_train.serving.threads import GoingOn


def matching(stored: BankSnapshot, asked: Matching, going_on: GoingOn) -> Tensor:
    """[n] bool over the snapshot's numbers. going_on: see words.with_words, which reads texts."""
    found = stored.live if asked.filter is None else asked.filter.documents().allowed(stored)
    return found & with_words(stored, asked.words, going_on) if asked.words.strip() else found


def listed(bank: ServedBank, asked: Listing, going_on: GoingOn) -> dict[str, Any]:
    """Documents that match, by ascending number. total: all that match; first: how many of them
    come before those shown; next: the next stretch's `after`, None at the end."""
    bank.view()
    stored = bank.snapshot
    with bank.named_errors():
        places = matching(stored, asked, going_on).nonzero().squeeze(1)
        above = int(torch.searchsorted(stored.numbers[places], asked.after, right=True))
        first = min(above + asked.skip, len(places))
        shown = places[first : first + asked.limit].tolist()
        documents = [document_json(stored.at(place)) for place in shown]
    ended = first + len(shown) == len(places)
    following = None if ended else documents[-1]["number"]
    return {"documents": documents, "next": following, "total": len(places), "first": first}


def document(bank: ServedBank, model: ServedModel, number: int) -> dict[str, Any]:
    """A document with the character span of each of its chunks. Raises ApiError 404."""
    found = bank.document(number)
    size = bank.snapshot.manifest.form.chunk_size
    return {
        **document_json(found),
        "chunks": chunk_spans(model.tokenizer, number, found.text, size),
    }


def whole_document(bank: ServedBank, number: int, going_on: GoingOn) -> dict[str, Any]:
    """A document, of a split one the texts of all parts, each on a line of its own: the space where
    it was cut is not stored. parts: how many. Raises ApiError 404."""
    bank.view()
    stored, parts = bank.snapshot, []
    try:
        with bank.named_errors():
            for each in stored.whole_of(number):
                going_on()
                parts.append(stored[each])
    except KeyError:
        raise bank.no_document(str(number)) from None
    parts.sort(key=lambda each: each.part)
    text = "\n".join(part.text for part in parts)
    return {**document_json(parts[0]), "number": number, "text": text, "parts": len(parts)}


def chunk_spans(
    tokenizer: Tokenizer, number: int, text: str, chunk_size: int
) -> list[tuple[int, int]]:
    """[start, end) of each chunk of a document, in characters (code points) of its text.

    The tokens around the text (number and control tokens) are no characters: a chunk of them alone
    is empty. A character whose bytes are in two chunks belongs to both.
    """
    pieces = document_pieces(number, text)
    ids = tokenizer.encode_pieces(pieces).tokens
    texts = (tokenizer.token_bytes(i) for i in ids[1:-1])  # without the control tokens
    lengths = np.array([0, *map(len, texts), 0])
    bounds = np.concatenate([[0], lengths.cumsum()])
    prefix, data = len(f"[{number}]. "), text.encode()
    starts_before, complete_before = _characters(data)
    spans = []
    for first in range(0, len(ids), chunk_size):
        last = min(first + chunk_size, len(ids))
        start, end = np.clip(bounds[[first, last]] - prefix, 0, len(data))
        spans.append((int(complete_before[start]), int(starts_before[end])))
    return spans


def _characters(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """[bytes + 1] each: characters that begin, and that are complete, before each byte offset."""
    octets = np.frombuffer(data, dtype=np.uint8)
    begins = (octets & 0xC0) != 0x80
    started = np.concatenate([[0], begins.cumsum()])
    inside = np.concatenate([~begins, [False]])  # the offset falls within a character
    return started, started - inside


def restricted(view: MemoryView, only: Filter | None) -> MemoryView:
    """A view of the documents that a filter names. Without one it is the view itself, since
    questions to the same view are searched together."""
    if only is None:
        return view
    return view.restricted(only.documents().allowed(view.documents))


def search(
    bank: ServedBank, model: ServedModel, asked: Search, context_tokens: int
) -> list[dict[str, Any]]:
    """What the routers choose for a text, best first; layers: its score in each that chose it.

    Raises ContextError for a text of more than context_tokens, whose prefill could take all memory.
    """
    tokens = len(model.tokenizer.encode_pieces(prompt_pieces(asked.query)).tokens)
    if tokens >= context_tokens:
        raise too_long(tokens, context_tokens)
    with bank.named_errors():
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
                **document_json(view.documents[number]),
                "score": score,
                "layers": {
                    layer: scores[number] for layer, scores in by_layer.items() if number in scores
                },
            }
            for number, score in chosen.voted[: asked.limit]
        ]
