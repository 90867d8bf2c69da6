"""Settings of a training corpus: its sources, kinds of contexts, tokenizer, shards and stages.

Everything random is fixed when shards are built, so that reading them is only a matter of order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, make_dataclass, replace
from typing import Any, get_args

from data_pipeline.errors import DataError, check_least
from data_pipeline.protocol import AnswerForm
from data_pipeline.schema import ASKED_KINDS
from data_pipeline.sources.base import BankConfig, NumberConfig, Source
from data_pipeline.sources.dataset_config import DatasetConfig
from data_pipeline.sources.datasets import DatasetSource
from data_pipeline.sources.niah import NeedleTask
from data_pipeline.sources.registry import SOURCES
from data_pipeline.tokenizer import TokenizerConfig

NOT_GIVEN = "not given"

_Banks = make_dataclass(
    "_Banks", [(name, BankConfig, source.banks) for name, source in SOURCES.items()], frozen=True
)


@dataclass(frozen=True)
class BanksConfig(_Banks):
    """Banks of every registered source, by its name."""


@dataclass(frozen=True)
class ContextConfig:
    """Proportions of the kinds of contexts (SPEC section 4), and what goes wrong in them.

    retrieve: write the ids. answer_text: answer with texts appended. answer_memory: answer from
        pooled memory alone.
    wrong_share, wrong_documents: this share of the answer_text contexts also holds 1 up to
        wrong_documents documents that do not answer the question: its hard negatives, the most
        alike first, or any, where its bank has none.
    absent_share: in this share of the answer_text contexts the documents that answer are not among
        those that were read, and the answer is that the memory does not say.
    answers: the form of the answer_text contexts: the protocol's, or a turn of a chat. It must be
        the model's (model.answers).
    """

    retrieve: float = 0.4
    answer_text: float = 0.2
    answer_memory: float = 0.4
    wrong_share: float = 0.5
    wrong_documents: int = 2
    absent_share: float = 0.0
    answers: AnswerForm = "protocol"

    def __post_init__(self) -> None:
        check_least(0, self, "data.contexts.", *ASKED_KINDS)
        if not sum(getattr(self, name) for name in ASKED_KINDS) > 0:
            raise DataError(f"data.contexts: {', '.join(ASKED_KINDS)} are all 0: make one positive")
        for name in ("wrong_share", "absent_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"data.contexts.{name} is {getattr(self, name)}: give 0 to 1")
        if self.answers not in get_args(AnswerForm):
            raise DataError(f"data.contexts.answers is {self.answers!r}: give protocol or chat")
        if self.wrong_documents < 1:
            raise DataError(
                f"data.contexts.wrong_documents is {self.wrong_documents}: give 1 or more "
                "(wrong_share 0 turns them off)"
            )


@dataclass(frozen=True)
class _SharedSettings:
    """What stands before the sections of the sources."""

    seed: int = 0
    banks: BanksConfig = field(default_factory=BanksConfig)
    datasets: Mapping[str, DatasetConfig] = field(default_factory=dict)
    contexts: ContextConfig = field(default_factory=ContextConfig)
    numbers: NumberConfig = field(default_factory=NumberConfig)


_SourceSettings = make_dataclass(
    "_SourceSettings",
    [
        (name, source.settings, field(default_factory=source.settings))
        for name, source in SOURCES.items()
    ],
    bases=(_SharedSettings,),
    frozen=True,
)


@dataclass(frozen=True)
class DataConfig(_SourceSettings):
    """What a training corpus is made of; its stages say in which proportions.

    Every registered source has a section under its name, beside those below (niah, pydocs).
    datasets: sources made from dataset folders, by a name of your choice.
    shard_samples: samples of one shard. workers: processes that build shards; the result is the
        same for any number.
    """

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    shard_samples: int = 256
    workers: int = 2

    def __post_init__(self) -> None:
        check_least(1, self, "data.", "shard_samples", "workers")
        check_least(0, self, "data.", "seed")
        if taken := set(self.datasets) & set(SOURCES):
            raise DataError(f"data.datasets names {sorted(taken)}, which exist: choose other names")

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of all sources, in a fixed order."""
        return (*SOURCES, *self.datasets)

    def source(self, name: str) -> tuple[type[Source], Any]:
        """Class and settings of a source."""
        if name in self.datasets:
            return DatasetSource, self.datasets[name]
        return SOURCES[name], getattr(self, name)

    def bank_of(self, source: str) -> BankConfig:
        """The banks of a source."""
        return (
            self.datasets[source].bank if source in self.datasets else getattr(self.banks, source)
        )


if _taken := SOURCES.keys() & {*_SharedSettings.__annotations__, *DataConfig.__annotations__}:
    raise DataError(f"sources are named {sorted(_taken)}, which are settings of data: rename them")


@dataclass(frozen=True)
class StageData:
    """What a stage reads, where that differs from the data section.

    document_tokens: length of documents: needles are written to it (0: bare needles), longer
        documents of datasets are split (null: data.niah.document_tokens, and each dataset's own).
    memory_tokens: document tokens of a bank, at most (null: as many as its documents have).
    weights: of the sources in this stage, instead of theirs.
    tasks: needle tasks, instead of data.niah.tasks.
    contexts: kinds of contexts, instead of data.contexts.
    """

    document_tokens: int | None = None
    memory_tokens: int | None = None
    weights: Mapping[str, float] | None = None
    tasks: Mapping[NeedleTask, float] | None = None
    contexts: ContextConfig | None = None

    def __post_init__(self) -> None:
        check_least(0, self, "stages[].data.", "document_tokens")
        check_least(1, self, "stages[].data.", "memory_tokens")
        for name, weight in (self.weights or {}).items():
            if not weight >= 0:
                raise DataError(f"stages[].data.weights.{name} is {weight}: give 0 or more")


@dataclass(frozen=True)
class CorpusStage:
    """An amount of data: a number of samples, or of memory tokens (one of the two).

    Read `epochs` times, each time in another order.
    """

    data: StageData = field(default_factory=StageData)
    samples: int | None = None
    tokens: int | None = None
    epochs: int = 1


@dataclass(frozen=True)
class TrainingCorpus:
    """What shards are built from. Stages given in tokens are rounded to whole batches.

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
            self._check_stage(i)

    def _check_stage(self, i: int) -> None:
        weights = self.source_weights(i)
        for name, weight in weights.items():
            source, config = self.source(name, i)
            if weight:
                bank, length = self.data.bank_of(name), self.stages[i].data.document_tokens
                source.check_stage(config, bank, i, length)
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

    @property
    def used_sources(self) -> tuple[str, ...]:
        """Sources that some stage draws from."""
        weights = [self.source_weights(stage) for stage in range(len(self.stages))]
        return tuple(name for name in self.data.sources if any(w[name] > 0 for w in weights))

    def source(self, name: str, stage: int) -> tuple[type[Source], Any]:
        """Class and settings of a source, as a stage has them.

        Raises DataError where the stage's tasks are impossible.
        """
        source, config = self.data.source(name)
        data = self.stages[stage].data
        return source, source.for_stage(config, data.document_tokens, data.tasks)

    def contexts(self, stage: int) -> ContextConfig:
        """Kinds of contexts of a stage."""
        return self.stages[stage].data.contexts or self.data.contexts

    def held_out(self, samples: int) -> TrainingCorpus:
        """What training does not see, with the data of the last stage.

        Datasets ask the questions of their held_out_split, and about held-out passages; one that
        holds nothing out is left out. Raises DataError when no source is left.
        """
        last = len(self.stages) - 1
        every = {name: self.data.source(name) for name in self.data.sources}
        found = {name: source.held_out(config) for name, (source, config) in every.items()}
        kept = {name: config for name, config in found.items() if config is not None}
        weights = {name: w for name, w in self.source_weights(last).items() if name in kept}
        if not any(weights.values()):
            raise DataError(
                "nothing is held out: give data.datasets.*.held_out_split, or set "
                "training.held_out_every to 0"
            )
        datasets = {name: kept.pop(name) for name in self.data.datasets if name in kept}
        stage = CorpusStage(replace(self.stages[last].data, weights=weights), samples=samples)
        return TrainingCorpus(replace(self.data, datasets=datasets, **kept), (stage,))

    def settings(self) -> dict[str, Any]:
        """What determines the corpus, as JSON gives it back: everything but data.workers.

        What came later and is off here is left out: shards do not change with its arrival.
        """
        plain = json.loads(json.dumps(asdict(self)))
        del plain["data"]["workers"]
        stages = (stage["data"]["contexts"] for stage in plain["stages"])
        for contexts in (plain["data"]["contexts"], *stages):
            for name in ("absent_share", "answers") if contexts else ():
                if contexts[name] == getattr(ContextConfig, name):
                    del contexts[name]
        for name, source in SOURCES.items():
            untouched = getattr(self.data, name) == source.settings()
            if not source.banks.weight and untouched and name not in self.used_sources:
                del plain["data"][name], plain["data"]["banks"][name]
        return plain


def differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(dotted key, (old, new)) of every leaf that differs; stages are compared one by one."""
    if where == "stages":
        old, new = ({f"[{i}]": stage for i, stage in enumerate(each)} for each in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            below = f"{where}{'.' * bool(where and where != 'stages')}{key}"
            yield from differences(old.get(key, NOT_GIVEN), new.get(key, NOT_GIVEN), below)
    elif old != new:
        yield where, (old, new)
