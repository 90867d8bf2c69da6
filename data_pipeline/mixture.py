"""A corpus: its data in stages, each with its own amount, sources and kinds of contexts.

Everything random is fixed when shards are built, so that reading them is only a matter of order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.settings import ContextConfig, DataConfig
from data_pipeline.sources.needles import NiahConfig, Task


@dataclass(frozen=True)
class StageData:
    """What a stage reads, where that differs from the data section.

    document_tokens: length of documents: needles have about so many (0: bare needles), longer
        documents of datasets are split (null: data.niah.document_tokens, and each dataset's own).
    memory_tokens: at most so many document tokens in a bank (null: as its documents have).
    weights: of the sources in this stage, instead of theirs.
    tasks: needle tasks, instead of data.niah.tasks.
    contexts: kinds of contexts, instead of data.contexts.
    """

    document_tokens: int | None = None
    memory_tokens: int | None = None
    weights: Mapping[str, float] | None = None
    tasks: Mapping[Task, float] | None = None
    contexts: ContextConfig | None = None

    def __post_init__(self) -> None:
        if self.document_tokens is not None and self.document_tokens < 0:
            raise DataError(
                f"stages[].data.document_tokens is {self.document_tokens}: give 0 or more"
            )
        if self.memory_tokens is not None and self.memory_tokens < 1:
            raise DataError(f"stages[].data.memory_tokens is {self.memory_tokens}: give 1 or more")
        for name, weight in (self.weights or {}).items():
            if weight < 0:
                raise DataError(f"stages[].data.weights.{name} is {weight}: give 0 or more")


@dataclass(frozen=True)
class CorpusStage:
    """An amount of data: so many samples, or as many as hold so many memory tokens (one of them).

    Read `epochs` times, each time in another order.
    """

    data: StageData = field(default_factory=StageData)
    samples: int | None = None
    tokens: int | None = None
    epochs: int = 1


@dataclass(frozen=True)
class TrainingCorpus:
    """What shards are built from. Stages given in tokens are rounded up to whole batches.

    Raises DataError when a stage is impossible.
    """

    data: DataConfig
    stages: tuple[CorpusStage, ...]
    batch_samples: int = 1

    def __post_init__(self) -> None:
        if not self.stages:
            raise DataError("stages is empty: give at least one")
        for i, stage in enumerate(self.stages):
            assert (stage.samples is None) != (stage.tokens is None), "one of the two"
            self._check_stage(i, stage.data)

    def _check_stage(self, i: int, stage: StageData) -> None:
        niah = self.data.niah
        weights = self.source_weights(i)
        if weights["niah"] and (stage.document_tokens or 0) > niah.document_tokens:
            raise DataError(
                f"stages[{i}].data.document_tokens is {stage.document_tokens}, more than "
                f"data.niah.document_tokens ({niah.document_tokens}): raise that"
            )
        self.niah(i)
        if not sum(weights.values()) > 0:
            raise DataError(
                f"stages[{i}]: every source has weight 0; give data.banks.*.weight, "
                f"data.datasets.*.bank.weight or stages[{i}].data.weights a positive one"
            )
        for name, weight in weights.items():
            documents = self.data.bank_of(name).documents
            if weight and documents > self.data.numbers.limit:
                raise DataError(
                    f"banks of {name} have {documents} documents, but data.numbers.limit "
                    f"allows {self.data.numbers.limit} numbers: raise it"
                )
        needles = self.data.banks.niah.documents * niah.needle_share
        if weights["niah"] and needles > niah.key_count:
            raise DataError(
                f"data.banks.niah.documents is {self.data.banks.niah.documents}, but data.niah "
                f"makes only {niah.key_count} keys: raise its key_words, adjectives or nouns"
            )

    def source_weights(self, stage: int) -> dict[str, float]:
        """Weight of every source in a stage."""
        names = self.data.sources
        given = self.stages[stage].data.weights
        if given is None:
            return {name: self.data.bank_of(name).weight for name in names}
        if unknown := set(given) - set(names):
            raise DataError(
                f"stages[{stage}].data.weights names {sorted(unknown)}: give {', '.join(names)}"
            )
        return {name: given.get(name, 0.0) for name in names}

    def niah(self, stage: int) -> NiahConfig:
        """Needle settings of a stage. Raises DataError where its tasks are impossible."""
        tasks = self.stages[stage].data.tasks
        return self.data.niah if tasks is None else replace(self.data.niah, tasks=dict(tasks))

    def contexts(self, stage: int) -> ContextConfig:
        """Kinds of contexts of a stage."""
        return self.stages[stage].data.contexts or self.data.contexts

    def held_out(self, samples: int) -> TrainingCorpus:
        """What training does not see, with the data of the last stage.

        Datasets ask the questions of their held_out_split, and about held-out passages; one that
        holds nothing out is left out. Raises DataError when no source is left.
        """
        last = len(self.stages) - 1
        asking = {name: dataset.held_out() for name, dataset in self.data.datasets.items()}
        datasets = {name: dataset for name, dataset in asking.items() if dataset is not None}
        weights = {
            name: weight
            for name, weight in self.source_weights(last).items()
            if name not in asking or name in datasets
        }
        if not any(weights.values()):
            raise DataError(
                "nothing is held out: give data.datasets.*.held_out_split, or set "
                "training.held_out_every to 0"
            )
        stage = CorpusStage(replace(self.stages[last].data, weights=weights), samples=samples)
        return TrainingCorpus(replace(self.data, datasets=datasets), (stage,))

    def settings(self) -> dict[str, Any]:
        """What determines the corpus, as JSON gives it back: everything but data.workers."""
        plain = json.loads(json.dumps(asdict(self)))
        del plain["data"]["workers"]
        return plain
