"""Several corpora in one bank, asked the questions of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from msa_kernels import cumulative

from data_pipeline.schema import Document
from msa_train.interop.export import LoadedModel
from msa_train.memory.search.keys import chunks_of
from msa_train.router.examples import RouterExamples
from msa_train.router.fit import CachedExamples
from msa_train.router.means import (
    LayerMeans,
    backbone_digest,
    kept_document_means,
    kept_question_means,
)

_STUB = 10  # words: of a text so short, only one under the same title is the same


class Pool:
    """The documents of corpora in one bank, in their order; equal texts stand once.

    So no passage that answers a question counts as a wrong one because another corpus has it too.
    Texts are equal that have the same words, whatever their titles, case and punctuation; a stub of
    fewer than ten words only if its title is the same.

    documents: numbered anew, 0 to n-1. Chunk means are those of a document under the number that it
    has in its own corpus, so that they are found where `msa router` keeps them.
    """

    def __init__(self, corpora: Sequence[RouterExamples]):
        self._corpora = corpora
        self._banks: dict[tuple[str, tuple[int, ...]], LayerMeans] = {}
        self._held: list[list[int]] = []  # of each corpus, the documents that stand in the bank
        self._places: list[list[int]] = []  # of each document of a corpus: its place in the bank
        first: dict[str, int] = {}
        documents: list[Document] = []
        for corpus in corpora:
            held, places = [], []
            for document in corpus.documents:
                place = first.setdefault(_words_of(document), len(documents))
                if place == len(documents):
                    documents.append(replace(document, number=place))
                    held.append(document.number)
                places.append(place)
            self._held.append(held)
            self._places.append(places)
        self.documents = tuple(documents)

    def examples(self, corpus: int) -> RouterExamples:
        """A corpus's questions about the bank."""
        places, own = self._places[corpus], self._corpora[corpus]
        pairs = tuple(
            replace(pair, documents=tuple(dict.fromkeys(places[d] for d in pair.documents)))
            for pair in own.pairs
        )
        return RouterExamples(own.name, self.documents, pairs)

    def cached(self, corpus: int, loaded: LoadedModel, keep: Path | None) -> CachedExamples:
        """The means of the bank, and of a corpus's questions. keep: as in kept_document_means."""
        layers, examples = loaded.model.config.router_layers, self.examples(corpus)
        questions = [pair.question for pair in examples.pairs]
        positives = tuple(pair.documents for pair in examples.pairs)
        return CachedExamples(
            examples.name,
            self._means(loaded, keep),
            kept_question_means(loaded, questions, layers, keep),
            positives,
        )

    def _means(self, loaded: LoadedModel, keep: Path | None) -> LayerMeans:
        """Of the bank; exports of one backbone share them."""
        layers = loaded.model.config.router_layers
        if (key := (backbone_digest(loaded), layers)) not in self._banks:
            parts = [kept_document_means(loaded, c.documents, layers, keep) for c in self._corpora]
            self._banks[key] = self._joined(parts)
        return self._banks[key]

    def _joined(self, parts: Sequence[LayerMeans]) -> LayerMeans:
        held = [torch.tensor(each, dtype=torch.int64) for each in self._held]
        rows = {
            layer: torch.cat([part.rows[layer][chunks_of(documents, part.cu)]
                              for part, documents in zip(parts, held, strict=True)])
            for layer in parts[0].rows
        }  # fmt: skip
        counts = [part.cu.diff()[each] for part, each in zip(parts, held, strict=True)]
        return LayerMeans(rows, cumulative(torch.cat(counts)))


def _words_of(document: Document) -> str:
    """The same for texts that are equal."""
    words = re.findall(r"\w+", document.text.removeprefix(document.title).casefold())
    if len(words) < _STUB:
        words = [*re.findall(r"\w+", document.title.casefold()), "", *words]
    return " ".join(words)
