"""Settings of a training corpus: sources, curriculum, kinds of contexts, tokenizer, shards.

Everything random is fixed when shards are built, so that reading them is only a matter of order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from data_pipeline.errors import DataError
from data_pipeline.schema import KINDS
from data_pipeline.sources.base import NumberConfig
from data_pipeline.sources.needles import NiahConfig, Task
from data_pipeline.sources.pydocs import PydocsConfig

SourceName = Literal["niah", "pydocs"]
SOURCES: tuple[SourceName, ...] = get_args(SourceName)


@dataclass(frozen=True)
class BankConfig:
    """Banks of one source: how often it is drawn, documents of a bank, contexts asked of it."""

    weight: float = 1.0
    documents: int = 128
    contexts: int = 64

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise DataError(f"data.banks.*.weight is {self.weight}: give 0 or more")
        for name in ("documents", "contexts"):
            if getattr(self, name) < 1:
                raise DataError(f"data.banks.*.{name} is {getattr(self, name)}: give 1 or more")


@dataclass(frozen=True)
class BanksConfig:
    niah: BankConfig = field(default_factory=BankConfig)
    pydocs: BankConfig = field(default_factory=lambda: BankConfig(0.2, 48, 24))


@dataclass(frozen=True)
class ContextConfig:
    """Proportions of the kinds of contexts (SPEC section 4), and what goes wrong in them.

    retrieve: write the ids. answer_text: answer with texts appended. answer_memory: answer from
        pooled memory alone.
    wrong_share, wrong_documents: this share of the answer_text contexts also holds 1 up to
        wrong_documents documents that do not answer the question.
    """

    retrieve: float = 0.4
    answer_text: float = 0.2
    answer_memory: float = 0.4
    wrong_share: float = 0.5
    wrong_documents: int = 2

    def __post_init__(self) -> None:
        for name in KINDS:
            if getattr(self, name) < 0:
                raise DataError(f"data.contexts.{name} is {getattr(self, name)}: give 0 or more")
        if not sum(getattr(self, name) for name in KINDS) > 0:
            raise DataError(f"data.contexts: {', '.join(KINDS)} are all 0: make one positive")
        if not 0 <= self.wrong_share <= 1:
            raise DataError(f"data.contexts.wrong_share is {self.wrong_share}: give 0 to 1")
        if self.wrong_documents < 1:
            raise DataError(
                f"data.contexts.wrong_documents is {self.wrong_documents}: give 1 or more "
                "(wrong_share 0 turns them off)"
            )


@dataclass(frozen=True)
class Stage:
    """A stretch of the curriculum.

    share: of the samples, relative to the other stages' shares.
    document_tokens: target length of needle documents (0: bare needles; None: full length).
    weights: of the sources in this stage, instead of data.banks.*.weight.
    tasks: needle tasks of this stage, instead of data.niah.tasks.
    contexts: kinds of contexts of this stage, instead of data.contexts.
    """

    share: float = 1.0
    document_tokens: int | None = None
    weights: Mapping[SourceName, float] | None = None
    tasks: Mapping[Task, float] | None = None
    contexts: ContextConfig | None = None

    def __post_init__(self) -> None:
        if not self.share > 0:
            raise DataError(f"data.stages[].share is {self.share}: give a positive number")
        if self.document_tokens is not None and self.document_tokens < 0:
            raise DataError(
                f"data.stages[].document_tokens is {self.document_tokens}: give 0 or more"
            )
        for name, weight in (self.weights or {}).items():
            if name not in SOURCES:
                raise DataError(f"data.stages[].weights names {name!r}: give {', '.join(SOURCES)}")
            if weight < 0:
                raise DataError(f"data.stages[].weights.{name} is {weight}: give 0 or more")


@dataclass(frozen=True)
class TokenizerConfig:
    """The SentencePiece tokenizer that is trained on the corpus.

    phrases: the fixed phrases of protocol and needles become one token each: shorter contexts.
    placed_digits: a number in brackets is spelled in tokens of two digits that know their place
        (`[12`, `34`, `5]`), so that a bag of tokens, which pooled memory is, holds a number up to
        six digits whole; else every digit is one token.
    needle_texts: needle documents to train on. word_repeats: how often each word of the needle
        lists is repeated, so that it becomes one token.
    """

    vocab_size: int = 4096
    model_type: Literal["bpe", "unigram"] = "bpe"
    phrases: bool = False
    placed_digits: bool = False
    needle_texts: int = 8000
    word_repeats: int = 400

    def __post_init__(self) -> None:
        if self.vocab_size < 512:
            raise DataError(
                f"data.tokenizer.vocab_size is {self.vocab_size}: give 512 or more (256 are bytes)"
            )
        for name in ("needle_texts", "word_repeats"):
            if getattr(self, name) < 0:
                raise DataError(f"data.tokenizer.{name} is {getattr(self, name)}: give 0 or more")


@dataclass(frozen=True)
class DataConfig:
    """A training corpus.

    samples: banks in all (one sample is one bank with its contexts).
    stages: the curriculum, read in this order.
    shard_samples: samples of one shard. workers: processes that build shards; the result is the
        same for any number.
    """

    seed: int = 0
    samples: int = 5000
    banks: BanksConfig = field(default_factory=BanksConfig)
    contexts: ContextConfig = field(default_factory=ContextConfig)
    stages: tuple[Stage, ...] = (Stage(),)
    numbers: NumberConfig = field(default_factory=NumberConfig)
    niah: NiahConfig = field(default_factory=NiahConfig)
    pydocs: PydocsConfig = field(default_factory=PydocsConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    shard_samples: int = 256
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("samples", "shard_samples", "workers"):
            if getattr(self, name) < 1:
                raise DataError(f"data.{name} is {getattr(self, name)}: give 1 or more")
        if self.seed < 0:
            raise DataError(f"data.seed is {self.seed}: give 0 or more")
        if not 1 <= len(self.stages) <= self.samples:
            raise DataError(
                f"data.stages has {len(self.stages)} stages for {self.samples} samples: "
                "give at least one stage and one sample for each"
            )
        for i, stage in enumerate(self.stages):
            self._check_stage(i, stage)

    def _check_stage(self, i: int, stage: Stage) -> None:
        if (stage.document_tokens or 0) > self.niah.document_tokens:
            raise DataError(
                f"data.stages[{i}].document_tokens is {stage.document_tokens}, more than "
                f"data.niah.document_tokens ({self.niah.document_tokens}): raise that"
            )
        self.stage_niah(i)
        if not sum(self.source_weights(i).values()) > 0:
            raise DataError(
                f"data.stages[{i}]: every source has weight 0; give data.banks.*.weight or "
                f"data.stages[{i}].weights a positive one"
            )
        for name in SOURCES:
            bank = getattr(self.banks, name)
            if self.source_weights(i)[name] and bank.documents > self.numbers.limit:
                raise DataError(
                    f"data.banks.{name}.documents is {bank.documents}, but data.numbers.limit "
                    f"allows {self.numbers.limit} numbers: raise it"
                )

        needles = self.banks.niah.documents * self.niah.needle_share
        if self.source_weights(i)["niah"] and needles > self.niah.key_count:
            raise DataError(
                f"data.banks.niah.documents is {self.banks.niah.documents}, but data.niah makes "
                f"only {self.niah.key_count} keys: raise its key_words, adjectives or nouns"
            )

    def source_weights(self, stage: int) -> dict[SourceName, float]:
        """Weight of every source in a stage."""
        given = self.stages[stage].weights
        if given is not None:
            return {name: given.get(name, 0.0) for name in SOURCES}
        return {name: getattr(self.banks, name).weight for name in SOURCES}

    def stage_niah(self, stage: int) -> NiahConfig:
        """Needle settings of a stage. Raises DataError where its tasks are impossible."""
        tasks = self.stages[stage].tasks
        return self.niah if tasks is None else replace(self.niah, tasks=dict(tasks))

    def stage_contexts(self, stage: int) -> ContextConfig:
        """Kinds of contexts of a stage."""
        return self.stages[stage].contexts or self.contexts

    def stage_ends(self) -> tuple[int, ...]:
        """Cumulative number of samples at the end of each stage; every stage has at least one."""
        total, passed, ends = sum(stage.share for stage in self.stages), 0.0, []
        for i, stage in enumerate(self.stages):
            passed += stage.share
            low = (ends[-1] if ends else 0) + 1
            high = self.samples - (len(self.stages) - 1 - i)
            ends.append(min(max(round(self.samples * passed / total), low), high))
        return tuple(ends)

    def settings(self) -> dict[str, Any]:
        """What determines the corpus, as plain data: all settings but `workers`."""
        return {key: value for key, value in asdict(self).items() if key != "workers"}
