"""How large a step's samples are: by a run's shards where they are built, else by its settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import ShardManifest, StageCounts
from data_pipeline.splitting import DOCUMENT_TOKENS
from msa_train.config import Config
from msa_train.errors import ConfigError
from msa_train.model.batch import MemoryBatch
from msa_train.stages import Schedule, Stage

CONTEXT_TOKENS = 128  # of a context whose length nothing tells
_ASKED = 32  # of them that route, and that the model writes, at most


@dataclass(frozen=True)
class SampleSize:
    """A bank and its contexts. document_tokens, context_tokens: of all of them together;
    query_tokens: of those that route; labels: tokens that the model is to write."""

    document_tokens: int
    documents: int
    context_tokens: int
    contexts: int
    query_tokens: int
    labels: int

    @classmethod
    def of_counts(cls, counts: StageCounts) -> SampleSize:
        """The mean sample of a stage of built shards."""
        samples = max(1, counts.samples)
        contexts = math.ceil(counts.contexts / samples)
        found = cls.usual(
            round(counts.document_tokens), math.ceil(counts.documents / samples), contexts,
            max(1, round(counts.context_tokens / max(1, contexts))),
        )  # fmt: skip
        return replace(found, context_tokens=round(counts.context_tokens))

    @classmethod
    def usual(cls, tokens: int, documents: int, contexts: int, context_tokens: int) -> SampleSize:
        """Of equal contexts, of whose tokens a usual part asks and is written."""
        asked = contexts * min(_ASKED, math.ceil(context_tokens / 2))
        return cls(tokens, documents, contexts * context_tokens, contexts, asked, asked)

    @classmethod
    def of_batch(cls, batch: MemoryBatch, ranks: int = 1) -> SampleSize:
        """ranks: that share it; each knows all documents, and has as many contexts of its own."""
        host = batch.on_host
        own = len(host.tokens), len(host.ctx_cu) - 1, int(host.is_query.sum()), host.label_count
        return cls(int(host.doc_cu[-1]), len(host.doc_cu) - 1, *(ranks * count for count in own))

    def chunks(self, size: int) -> int:
        """Of documents of equal length."""
        each = self.document_tokens / max(1, self.documents)
        return self.documents * math.ceil(each / size)

    def share(self, ranks: int) -> SampleSize:
        """What each of `ranks` has of it, at most."""
        values = {name: math.ceil(value / ranks) for name, value in vars(self).items()}
        return SampleSize(**values)


@dataclass(frozen=True)
class StageSize:
    """A stage of a run: how many steps, and a sample of them."""

    name: str
    steps: int
    sample: SampleSize


def _asked(what: str) -> Any:
    """A flag of `msa plan train` (msa_train/commands/flags.py)."""
    return field(default=None, metadata={"help": f"{what} (default: what shards or settings say)"})


@dataclass(frozen=True)
class Given:
    """What a person says of the samples, instead of shards and settings."""

    memory_tokens: int | None = _asked("document tokens of a bank")
    document_tokens: int | None = _asked("of every document")
    contexts: int | None = _asked("that ask a bank")
    context_tokens: int | None = _asked("of every context")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"{name.replace('_', '-')} is {value}: give 1 or more")


def stage_sizes(config: Config, given: Given) -> tuple[tuple[StageSize, ...], list[str]]:
    """Every stage, and what had to be assumed, as sentences."""
    if given == Given() and (manifest := manifest_of(config)) is not None:
        counts = [stage.samples for stage in manifest.stages]
        steps = Schedule.of(config.stages, counts, config.training.batch_samples).steps
        built = list(map(SampleSize.of_counts, manifest.stages))
        rows = zip(config.stages, steps, _sizes(config, built), strict=True)
        return tuple(StageSize(stage.name, *row) for stage, *row in rows), []
    built = [_size(config, number, given) for number in range(len(config.corpus.stages))]
    rows = zip(config.stages, _sizes(config, built), strict=True)
    stages = tuple(
        StageSize(stage.name, _steps(stage, size, config.training.batch_samples), size)
        for stage, size in rows
    )
    assumed = [
        "the shards are not built, or samples are given: documents are counted as long as the "
        "settings allow (--document-tokens), contexts as "
        f"{given.context_tokens or CONTEXT_TOKENS} tokens each (--context-tokens)"
    ]
    return stages, assumed


def manifest_of(config: Config) -> ShardManifest | None:
    """Of the run's shards, where they are built from its settings."""
    try:
        found = ShardManifest.load(config.manifest_folder)
    except DataError:
        return None
    return found if found.matches(config.corpus) else None


def _sizes(config: Config, built: list[SampleSize]) -> list[SampleSize]:
    """A sample of each stage; of one that draws from others, theirs that has the most tokens."""
    left = iter(built)
    return [
        max((built[i] for i in config.drawn_stages(stage)), key=lambda size: size.document_tokens)
        if stage.draws_from
        else next(left)
        for stage in config.stages
    ]


def _size(config: Config, number: int, given: Given) -> SampleSize:
    """A sample of a stage of the corpus."""
    corpus = config.corpus
    data, weights = corpus.stages[number].data, corpus.source_weights(number)
    total, tokens, documents, contexts = sum(weights.values()), 0.0, 0.0, 0.0
    for name, weight in weights.items():
        bank, (_, settings) = config.data.bank_of(name), config.data.source(name)
        length = given.document_tokens or data.document_tokens
        length = length or getattr(settings, "document_tokens", DOCUMENT_TOKENS)
        most = given.memory_tokens or data.memory_tokens
        count = bank.documents if most is None else math.ceil(most / length)
        share = weight / total
        tokens += share * min(count * length, most or math.inf)
        documents, contexts = documents + share * count, contexts + share * bank.contexts
    return SampleSize.usual(
        round(tokens), round(documents), given.contexts or round(contexts),
        given.context_tokens or CONTEXT_TOKENS,
    )  # fmt: skip


def _steps(stage: Stage, size: SampleSize, batch_samples: int) -> int:
    steps = stage.steps or max(1, round((stage.tokens or 0) / size.document_tokens / batch_samples))
    return min(steps, stage.stop_after or steps)
