"""Builds any sample of a corpus by its index, the same one in any process and order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.schema import Context, Document, Sample
from data_pipeline.settings import TrainingCorpus
from data_pipeline.shards.contexts import make_sample
from data_pipeline.sources.base import DrawnBank, Source, SourceInputs
from data_pipeline.splitting import document_length
from data_pipeline.tokenizer import Tokenizer

_PROBED = 16  # samples that tell how many tokens a stage's samples have
_HELD_OUT = 0x8E1D  # stream of random numbers of held-out samples
_SOURCES = 0x50CE  # of the samples' sources
_PROBED_DOCUMENTS = 128  # documents that tell the mean length of a source's
_SPARE = 2.0  # times the documents needed are drawn; what exceeds the budget is left out


class SampleBuilder:
    """Everything random in sample i depends on the corpus's seed, its stage and its place alone.

    prepared: folder for what sources keep on disk. held_out: build samples of what training does
    not see, instead.
    """

    def __init__(
        self, corpus: TrainingCorpus, tokenizer: Tokenizer, prepared: Path, held_out: bool = False
    ):
        self.corpus, self.tokenizer = corpus, tokenizer
        self._held_out = held_out
        self._budget = TokenBudget(tokenizer, corpus.data.numbers.limit)
        self._sources = _made(drawn_sources(corpus, tokenizer, prepared, held_out))
        self.samples: tuple[int, ...] = ()  # of each stage
        self._drawn: list[tuple[np.ndarray, np.ndarray]] = []
        self._taken = dict.fromkeys(corpus.data.sources, 0)
        for stage in range(len(corpus.stages)):
            self._add_stage(stage)
        self._ends = list(accumulate(self.samples))

    def __len__(self) -> int:
        return self._ends[-1]

    def stage(self, index: int) -> int:
        """The stage that sample `index` belongs to."""
        return bisect_right(self._ends, index)

    def build(self, index: int) -> Sample:
        """Sample `index` of the corpus."""
        stage = self.stage(index)
        return self._build(stage, index - (self._ends[stage] - self.samples[stage]))

    def _build(self, stage: int, place: int) -> Sample:
        names, places = self._drawn[stage]
        name = self.corpus.data.sources[names[place]]
        rng = self._rng(stage, place)
        data, bank = self.corpus.stages[stage].data, self.corpus.data.bank_of(name)
        source, length = self._sources[stage][name], data.document_tokens
        at = int(places[place])
        if data.memory_tokens is None:
            drawn = source.bank(rng, bank.documents, bank.contexts, length, at)
        else:
            documents = self._budget.documents(stage, source, length, data.memory_tokens)
            drawn = source.bank(rng, documents, bank.contexts, length, at)
            drawn = self._budget.within(drawn, data.memory_tokens, rng)
        sample = make_sample(rng, drawn, self.corpus.contexts(stage), name)
        if not any(map(_teaches, sample.contexts)):
            raise DataError(
                f"stages[{stage}]: a bank of the source {name} came out with nothing to learn (no "
                "question, and no text): change its settings, or give it weight 0"
            )
        return sample

    def _rng(self, stage: int, place: int) -> np.random.Generator:
        extra = (_HELD_OUT,) if self._held_out else ()
        return np.random.default_rng((self.corpus.data.seed, stage, place, *extra))

    def _add_stage(self, stage: int) -> None:
        """Settle how many samples a stage has, and the source of each."""
        wanted = self.corpus.stages[stage]
        if wanted.samples is not None:
            self._draw(stage, wanted.samples)
            return
        before = dict(self._taken)
        self._draw(stage, _PROBED)
        tokens = [self._budget.tokens(self._build(stage, i).documents) for i in range(_PROBED)]
        batches = wanted.tokens / np.mean(tokens) / wanted.epochs / self.corpus.batch_samples
        self._taken, self.samples = before, self.samples[:-1]
        self._drawn.pop()
        self._draw(stage, max(1, round(batches)) * self.corpus.batch_samples)

    def _draw(self, stage: int, samples: int) -> None:
        """The source of each sample, and how many were drawn from that source before it."""
        names = source_places(self.corpus, stage, samples)
        places = np.zeros(samples, dtype=np.int64)
        for i, name in enumerate(self.corpus.data.sources):
            own = names == i
            places[own] = self._taken[name] + np.arange(own.sum())
            self._taken[name] += int(own.sum())
        self._drawn.append((names, places))
        self.samples += (samples,)


def source_places(corpus: TrainingCorpus, stage: int, samples: int) -> np.ndarray:
    """[samples] the source of each sample of a stage, as its place in data.sources."""
    shares = np.array(list(corpus.source_weights(stage).values()))
    rng = np.random.default_rng((corpus.data.seed, stage, _SOURCES))
    return rng.choice(len(shares), samples, p=shares / shares.sum()).astype(np.int16)


def source_pools(
    corpus: TrainingCorpus, samples: Sequence[int], stages: Sequence[int]
) -> dict[str, np.ndarray]:
    """Numbers of the samples that were built for `stages` from each source, where there are any.

    samples: of each stage of the corpus. Nothing is read: shards of any age have their sources.
    """
    found: dict[str, list[np.ndarray]] = {}
    firsts = [0, *accumulate(samples)]
    for stage in stages:
        places = source_places(corpus, stage, samples[stage])
        for place, name in enumerate(corpus.data.sources):
            found.setdefault(name, []).append(firsts[stage] + np.flatnonzero(places == place))
    pools = {name: np.concatenate(parts) for name, parts in found.items()}
    return {name: pool for name, pool in pools.items() if len(pool)}


def drawn_sources(
    corpus: TrainingCorpus, tokenizer: Tokenizer, prepared: Path, held_out: bool
) -> list[dict[str, tuple[type[Source], Any, SourceInputs]]]:
    """Of each stage: the sources that it draws from, with what they are made of."""
    data = corpus.data
    return [
        {
            name: (
                *corpus.source(name, stage),
                SourceInputs(name, tokenizer, data.numbers, prepared, held_out, data.seed),
            )
            for name, weight in corpus.source_weights(stage).items()
            if weight
        }
        for stage in range(len(corpus.stages))
    ]


def preparations(
    corpus: TrainingCorpus, tokenizer: Tokenizer, prepared: Path, held_out: bool
) -> list[Callable[[], Any]]:
    """What the sources have to do before samples are built, each thing once."""
    found: list[tuple[type[Source], Any, Callable[[], Any]]] = []
    for stage in drawn_sources(corpus, tokenizer, prepared, held_out):
        for source, config, inputs in stage.values():
            call = source.preparation(config, inputs)
            if call is not None and (source, config) not in [each[:2] for each in found]:
                found.append((source, config, call))
    return [call for _, _, call in found]


def _made(
    stages: list[dict[str, tuple[type[Source], Any, SourceInputs]]],
) -> list[dict[str, Source]]:
    """The sources of each stage; what stages have in common is made once."""
    made: list[tuple[str, Any, Source]] = []

    def one(name: str, source: type[Source], config: Any, inputs: SourceInputs) -> Source:
        for other, known, found in made:
            if (other, known) == (name, config):
                return found
        made.append((name, config, source.make(config, inputs)))
        return made[-1][2]

    return [{name: one(name, *parts) for name, parts in stage.items()} for stage in stages]


class TokenBudget:
    """Counts memory tokens and keeps banks within a number of them.

    most: documents of a bank, at most.
    """

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

        Measured for each stage, whose settings change the source, and equal in every process.
        """
        key = (stage, source.name)
        if key not in self._means:
            probe = source.bank(
                np.random.default_rng(0), _PROBED_DOCUMENTS, 1, document_tokens
            ).documents
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
        fitting = tuple(
            replace(query, masked=_those(query.masked, kept), hard=_those(query.hard, kept))
            for query in queries
        )
        return replace(bank, documents=documents, queries=fitting)

    def _length(self, document: Document) -> int:
        return document_length(self._tokenizer, document.text, document.number)


def _teaches(context: Context) -> bool:
    """Whether a loss comes of it: a document to find, or something to write."""
    return bool(context.positives) or any(piece.label for piece in context.response)


def _those(numbers: Iterable[int], kept: set[int]) -> tuple[int, ...]:
    return tuple(number for number in numbers if number in kept)
