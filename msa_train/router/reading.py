"""What a model learns to read from: questions, and the passages that a router brings for each.

In serving a model reads the first few passages that its router finds, and the right one stands
anywhere among them or is not there. So it is trained on those (SPEC section 8): a dataset whose
hard negatives are the router's, for `contexts: {answer_text, wrong_share, absent_share}`.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from data_pipeline.dataset import Passage, Question, write_dataset
from data_pipeline.errors import DataError
from data_pipeline.schema import Document
from data_pipeline.sources.base import place_of
from msa_train.interop.export import ON_CPU, Placement, load_export
from msa_train.router.examples import SPARE, Pair, RouterExamples, read_examples, wrong_of
from msa_train.router.exports import cached_examples, router_projections
from msa_train.router.fit import Voter, check_pooled
from msa_train.router.settings import ReadingSettings

TRAIN, HELD_OUT = "train", "held_out"
_SCORED = 128  # questions that are scored at once


def write_reading(
    export: Path, corpus: str, target: Path, split: str, settings: ReadingSettings,
    keep: Path | None = None, placed: Placement = ON_CPU,
) -> dict[str, Any]:  # fmt: skip
    """Write the dataset folder `target`, with questions.train and questions.held_out. A report.

    split: of a dataset's questions, or "clozes". keep, placed: as in start_router. Raises
    DataError where no question has an answer, CheckpointError for a router that is not pooled.
    """
    began, loaded = time.monotonic(), load_export(export, placed)
    check_pooled(loaded.model.config, f"the router of {export}")
    if target.exists():
        raise DataError(f"{target} exists already: remove it, or give another folder")
    examples = _answered(
        read_examples(corpus, loaded.tokenizer, split, seed=settings.seed), settings
    )
    examples = replace(examples, documents=_named(examples.documents))
    cached = cached_examples(loaded, examples, keep)
    weights = router_projections(export)

    @torch.inference_mode()
    def ranked() -> Iterator[list[int]]:
        voter = Voter(loaded.model.config, weights, cached.documents)
        most = min(settings.passages + SPARE, len(examples.documents))
        for first in range(0, len(examples.pairs), _SCORED):
            part = cached.part(range(len(examples.pairs))[first : first + _SCORED])
            yield from voter(part.questions).topk(most, 1).indices.tolist()

    found = 0

    def questions() -> Iterator[tuple[str, Question]]:
        nonlocal found
        for number, (pair, places) in enumerate(zip(examples.pairs, ranked(), strict=True)):
            found += places[0] in pair.documents
            yield _question(number, pair, places, examples.documents, settings)

    counts = write_dataset(target, map(_passage, examples.documents), questions())
    return {
        "target": str(target),
        "corpus": corpus,
        "settings": asdict(settings) | {"split": split},
        "passages": counts["corpus.jsonl"],
        "questions": {name: counts.get(f"questions.{name}.jsonl", 0) for name in (TRAIN, HELD_OUT)},
        "router_first": round(found / len(examples.pairs), 4),
        "seconds": round(time.monotonic() - began, 1),
    }


def _answered(examples: RouterExamples, settings: ReadingSettings) -> RouterExamples:
    """Questions with an answer, so many of them, in random order."""
    pairs = [pair for pair in examples.pairs if pair.answers]
    if not pairs:
        raise DataError(f"no question about {examples.name} has an answer: give another split")
    random.Random(settings.seed).shuffle(pairs)
    return replace(examples, pairs=tuple(pairs[: settings.questions]))


def _named(documents: Sequence[Document]) -> tuple[Document, ...]:
    """Each with an id of its own: parts of a text may have that of the whole."""
    seen: Counter[str] = Counter()
    named = []
    for each in documents:
        seen[each.id] += 1
        place = "" if seen[each.id] == 1 else f"#{seen[each.id]}"
        named.append(replace(each, id=f"{each.id}{place}"))
    return tuple(named)


def _question(
    number: int,
    pair: Pair,
    places: Sequence[int],
    documents: Sequence[Document],
    settings: ReadingSettings,
) -> tuple[str, Question]:
    """(split, question); negatives: what was found first and does not answer."""
    wrong = [documents[place].id for place in wrong_of(places, pair, documents)]
    right = tuple(documents[place].id for place in pair.documents)
    # By another place than a source's own held-out documents, which may be no part of this corpus.
    held_out = any(place_of(f"reading/{id}") < settings.held_out_share for id in right)
    question = Question(
        str(number), pair.question, pair.answers, right,
        negatives=tuple(wrong[: settings.passages]), any_of=pair.any_of,
    )  # fmt: skip
    return HELD_OUT if held_out else TRAIN, question


def _passage(document: Document) -> Passage:
    title = document.title if document.text.startswith(f"{document.title}\n") else ""
    text = document.text.removeprefix(f"{title}\n")
    return Passage(document.id, title, text) if text.strip() else Passage(document.id, "", title)
