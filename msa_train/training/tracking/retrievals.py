"""Sample retrievals as the rows of a table: what each router layer found for a question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

COLUMNS = ("question", "positives", "layer", "rank", "document", "score", "hit", "text")
SNIPPET = 200  # characters


@dataclass(frozen=True)
class Retrieved:
    """A document that a router layer selected, best first in its list."""

    document: int
    score: float
    text: str


def retrieval_rows(
    question: str, positives: Iterable[int], found: Mapping[int, Sequence[Retrieved]]
) -> list[list[str | int | float | bool]]:
    """Rows of COLUMNS. positives: the documents that answer; found: by router layer."""
    right = set(positives)
    named = ", ".join(map(str, sorted(right)))
    return [
        [question, named, layer, rank, each.document, each.score, each.document in right,
         _snippet(each.text)]
        for layer, documents in sorted(found.items())
        for rank, each in enumerate(documents, 1)
    ]  # fmt: skip


def _snippet(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SNIPPET else flat[: SNIPPET - 1] + "…"
