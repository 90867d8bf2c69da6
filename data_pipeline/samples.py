"""From a bank and its questions to a sample: one bank, many contexts (SPEC section 4)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.mixture import SOURCES, ContextConfig, DataConfig, SourceName
from data_pipeline.protocol import (
    answer_pieces,
    answer_request_pieces,
    end_of_retrieve_pieces,
    evidence_pieces,
    memory_answer_pieces,
    retrieval_pieces,
)
from data_pipeline.schema import KINDS, Context, Document, Kind, Query, Sample
from data_pipeline.sources.base import Bank, Source
from data_pipeline.sources.needles import NiahConfig
from data_pipeline.tokenizer import Tokenizer


def retrieve_context(query: Query) -> Context:
    """One retrieval step: the model writes the ids of the positives."""
    response = retrieval_pieces(query.positives)
    return Context(query.question, "retrieve", tuple(response), query.positives)


def answer_text_context(query: Query, evidence: tuple[Document, ...]) -> Context:
    """All evidence has been appended: the model ends retrieval and answers; no router loss."""
    response = [
        *retrieval_pieces((document.number for document in evidence), label=False),
        *evidence_pieces(evidence),
        *end_of_retrieve_pieces(label=True),
        *answer_request_pieces(query.question),
        *answer_pieces(query.answers[0]),
    ]
    return Context(query.question, "answer_text", tuple(response), rounds=1)


def answer_memory_context(query: Query) -> Context:
    """No ids and no texts: the model answers from pooled memory, routed at the prompt."""
    response = [*memory_answer_pieces(query.question), *answer_pieces(query.answers[0])]
    return Context(query.question, "answer_memory", tuple(response), query.positives)


def make_sample(
    rng: np.random.Generator, bank: Bank, config: ContextConfig, source: str = ""
) -> Sample:
    """Every question of the bank becomes one context; its kind is drawn in proportion."""
    proportions = np.array([getattr(config, kind) for kind in KINDS], dtype=np.float64)
    kinds = rng.choice(len(KINDS), len(bank.queries), p=proportions / proportions.sum())
    by_number = {document.number: document for document in bank.documents}
    contexts = tuple(
        _context(rng, query, KINDS[kind], by_number, config)
        for query, kind in zip(bank.queries, kinds.tolist(), strict=True)
    )
    return Sample(bank.documents, contexts, source)


def _context(
    rng: np.random.Generator,
    query: Query,
    kind: Kind,
    by_number: Mapping[int, Document],
    config: ContextConfig,
) -> Context:
    if kind == "retrieve":
        return retrieve_context(query)
    if kind == "answer_memory":
        return answer_memory_context(query)
    numbers = set(query.positives)
    if rng.random() < config.wrong_share:
        others = list(by_number)
        for place in rng.integers(len(others), size=rng.integers(config.wrong_documents) + 1):
            numbers.add(others[place])
    return answer_text_context(query, tuple(by_number[number] for number in sorted(numbers)))


class SampleBuilder:
    """Builds any sample of a corpus by its index, the same one in any process and order."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer):
        self.config = config
        self._ends = config.stage_ends()
        stages = range(len(config.stages))
        made: dict[str, Source] = {
            name: make_source(name, config, tokenizer)
            for name in SOURCES
            if any(config.source_weights(stage)[name] > 0 for stage in stages)
        }
        self._sources = [_of_stage(made, config.stage_niah(stage)) for stage in stages]

    def stage(self, index: int) -> int:
        """The stage that sample `index` belongs to."""
        return bisect_right(self._ends, index)

    def build(self, index: int) -> Sample:
        """Sample `index`; everything random in it depends on (seed, stage, index) alone."""
        stage = self.stage(index)
        rng = np.random.default_rng((self.config.seed, stage, index))
        weights = self.config.source_weights(stage)
        shares = np.array([weights[name] for name in SOURCES])
        name = SOURCES[rng.choice(len(SOURCES), p=shares / shares.sum())]
        settings = getattr(self.config.banks, name)
        bank = self._sources[stage][name].bank(
            rng,
            settings.documents,
            settings.contexts,
            self.config.stages[stage].document_tokens,
        )
        return make_sample(rng, bank, self.config.stage_contexts(stage), name)


def _of_stage(sources: dict[str, Source], niah: NiahConfig) -> dict[str, Source]:
    """The sources with a stage's needle settings."""
    if "niah" not in sources:
        return sources
    return {**sources, "niah": sources["niah"].with_settings(niah)}


def make_source(name: SourceName, config: DataConfig, tokenizer: Tokenizer) -> Source:
    """The source of a name, with the corpus's settings."""
    if name == "niah":
        from data_pipeline.sources.niah import NiahSource

        return NiahSource(config.niah, tokenizer, config.numbers)
    if name == "pydocs":
        from data_pipeline.sources.pydocs import PydocsSource

        return PydocsSource(config.pydocs, tokenizer, config.numbers)
    raise DataError(f"there is no source {name!r}: give one of {', '.join(SOURCES)}")
