"""Builds any sample of a corpus by its index, the same one in any process and order."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np

from data_pipeline.budget import Budget
from data_pipeline.mixture import TrainingCorpus
from data_pipeline.samples import make_sample
from data_pipeline.schema import Sample
from data_pipeline.settings import DataConfig
from data_pipeline.sources.base import Source
from data_pipeline.sources.dataset_config import DatasetConfig
from data_pipeline.sources.dataset_tables import prepare
from data_pipeline.sources.datasets import DatasetSource
from data_pipeline.sources.niah import NiahSource
from data_pipeline.sources.pydocs import PydocsSource
from data_pipeline.tokenizer import Tokenizer

TableSettings = tuple[DatasetConfig, str | None, int]
_PROBED = 16  # samples that tell how many tokens a stage's samples have
_HELD_OUT = 0x8E1D  # stream of random numbers of held-out samples


class SampleBuilder:
    """Everything random in sample i depends on the corpus's seed, its stage and its place alone.

    prepared: folder for the tables of datasets. held_out: build samples of what training does not
    see, instead.
    """

    def __init__(
        self, corpus: TrainingCorpus, tokenizer: Tokenizer, prepared: Path, held_out: bool = False
    ):
        self.corpus, self.tokenizer = corpus, tokenizer
        self._held_out = held_out
        self._budget = Budget(tokenizer, corpus.data.numbers.limit)
        made: dict[tuple[str, int | None], Source] = {}
        self._sources = [
            self._sources_of(stage, prepared, made) for stage in range(len(corpus.stages))
        ]
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
        return make_sample(rng, drawn, self.corpus.contexts(stage), name)

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
        weights = self.corpus.source_weights(stage)
        shares = np.array(list(weights.values()))
        rng = np.random.default_rng((self.corpus.data.seed, stage, 0x50CE))
        names = rng.choice(len(shares), samples, p=shares / shares.sum()).astype(np.int16)
        places = np.zeros(samples, dtype=np.int64)
        for i, name in enumerate(weights):
            own = names == i
            places[own] = self._taken[name] + np.arange(own.sum())
            self._taken[name] += int(own.sum())
        self._drawn.append((names, places))
        self.samples += (samples,)

    def _sources_of(
        self, stage: int, prepared: Path, made: dict[tuple[str, int | None], Source]
    ) -> dict[str, Source]:
        """The sources that a stage draws from; equal ones are made once."""
        data, length = self.corpus.data, self.corpus.stages[stage].data.document_tokens
        found: dict[str, Source] = {}
        for name, weight in self.corpus.source_weights(stage).items():
            if not weight:
                continue
            key = (name, length if name in data.datasets else None)
            if key not in made:
                made[key] = self._make(name, length, prepared)
            source = made[key]
            if isinstance(source, NiahSource):
                source = source.with_settings(self.corpus.niah(stage))
            found[name] = source
        return found

    def _make(self, name: str, document_tokens: int | None, prepared: Path) -> Source:
        data = self.corpus.data
        if name == "niah":
            return NiahSource(data.niah, self.tokenizer, data.numbers)
        if name == "pydocs":
            split = "held_out" if self._held_out else "train"
            return PydocsSource(data.pydocs, self.tokenizer, data.numbers, split)
        config, split, length = table_settings(data, name, document_tokens, self._held_out)
        tables = prepare(config, split, length, self.tokenizer, prepared)
        return DatasetSource(name, config, tables, data.numbers, self._held_out, data.seed)


def tables_of(corpus: TrainingCorpus, held_out: bool) -> list[TableSettings]:
    """The tables of datasets that the stages of a corpus read."""
    found = {
        (name, stage.data.document_tokens): None
        for i, stage in enumerate(corpus.stages)
        for name, weight in corpus.source_weights(i).items()
        if weight and name in corpus.data.datasets
    }
    return [table_settings(corpus.data, *key, held_out) for key in found]


def table_settings(
    data: DataConfig, name: str, document_tokens: int | None, held_out: bool
) -> TableSettings:
    """Dataset, split and document length for `prepare`; a stage may only shorten documents."""
    config = data.datasets[name]
    split = config.held_out_split if held_out else config.split
    length = min(document_tokens or config.document_tokens, config.document_tokens)
    return config, split if config.tasks.get("given") else None, length
