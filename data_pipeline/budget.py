"""Banks of a set size in tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.schema import Document
from data_pipeline.sources.base import DrawnBank, Source
from data_pipeline.sources.dataset_tables import document_length
from data_pipeline.tokenizer import Tokenizer

_PROBED = 128  # documents that tell the mean length of a source's
_SPARE = 2.0  # so many times the documents needed are drawn, and the last ones left out


class Budget:
    """Counts memory tokens, and keeps banks within so many. most: documents of a bank at most."""

    def __init__(self, tokenizer: Tokenizer, most: int):
        self._tokenizer, self._most = tokenizer, most
        self._means: dict[tuple[int, str], float] = {}

    def tokens(self, documents: Iterable[Document]) -> int:
        """Tokens of documents with their wrappers."""
        return sum(map(self._length, documents))

    def documents(
        self, stage: int, source: Source, document_tokens: int | None, tokens: int
    ) -> int:
        """How many documents a stage has to draw from a source to fill a budget.

        Told by the stage, because its settings change a source: the same in every process.
        """
        key = (stage, source.name)
        if key not in self._means:
            probe = source.bank(np.random.default_rng(0), _PROBED, 1, document_tokens).documents
            self._means[key] = self.tokens(probe) / len(probe)
        return min(max(1, round(_SPARE * tokens / self._means[key])), self._most)

    def within(self, bank: DrawnBank, tokens: int, rng: np.random.Generator) -> DrawnBank:
        """The bank without what exceeds the budget: documents that no question asks for, and
        questions whose documents do not fit beside those of the questions before.

        Raises DataError when no question fits.
        """
        lengths = {document.number: self._length(document) for document in bank.documents}
        kept: set[int] = set()
        queries, left = [], tokens
        for query in bank.queries:
            need = sum(lengths[number] for number in {*query.positives} - kept)
            if need <= left:
                queries.append(query)
                kept.update(query.positives)
                left -= need
        if bank.queries and not queries:
            raise DataError(
                f"stages[].data.memory_tokens is {tokens}, too few for the documents of a single "
                "question: raise it"
            )
        for number in rng.permutation([n for n in lengths if n not in kept]).tolist():
            if lengths[number] <= left:
                kept.add(number)
                left -= lengths[number]
        documents = tuple(d for d in bank.documents if d.number in kept)
        masks = (tuple(number for number in query.masked if number in kept) for query in queries)
        fitting = (replace(q, masked=m) for q, m in zip(queries, masks, strict=True))
        return replace(bank, documents=documents, queries=tuple(fitting))

    def _length(self, document: Document) -> int:
        return document_length(self._tokenizer, document.text, document.number)
