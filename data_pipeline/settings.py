"""Settings of a training corpus: sources, kinds of contexts, tokenizer, shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.errors import DataError
from data_pipeline.schema import ASKED_KINDS
from data_pipeline.sources.base import BankConfig, NumberConfig
from data_pipeline.sources.dataset_config import DatasetConfig
from data_pipeline.sources.needles import NiahConfig
from data_pipeline.sources.pydocs import PydocsConfig

MADE_SOURCES = ("niah", "pydocs")  # sources that need no files


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
        for name in ASKED_KINDS:
            if getattr(self, name) < 0:
                raise DataError(f"data.contexts.{name} is {getattr(self, name)}: give 0 or more")
        if not sum(getattr(self, name) for name in ASKED_KINDS) > 0:
            raise DataError(f"data.contexts: {', '.join(ASKED_KINDS)} are all 0: make one positive")
        if not 0 <= self.wrong_share <= 1:
            raise DataError(f"data.contexts.wrong_share is {self.wrong_share}: give 0 to 1")
        if self.wrong_documents < 1:
            raise DataError(
                f"data.contexts.wrong_documents is {self.wrong_documents}: give 1 or more "
                "(wrong_share 0 turns them off)"
            )


@dataclass(frozen=True)
class TokenizerConfig:
    """The SentencePiece tokenizer that is trained on the corpus.

    phrases: the fixed phrases of protocol and needles become one token each: shorter contexts.
    placed_digits: a number in brackets is spelled in tokens of two digits that know their place
        (`[12`, `34`, `5]`), so that a bag of tokens, which pooled memory is, holds a number up to
        six digits whole; else every digit is one token.
    needle_texts: needle documents to train on. word_repeats: how often each word of the needle
        lists is repeated, so that it becomes one token. passages: of each dataset, at most.
    path: take the tokenizer of this folder (of an export or a shard set) instead; the other
        settings then say nothing.
    """

    vocab_size: int = 4096
    model_type: Literal["bpe", "unigram"] = "bpe"
    phrases: bool = False
    placed_digits: bool = False
    needle_texts: int = 8000
    word_repeats: int = 400
    passages: int = 20_000
    path: str | None = None

    def __post_init__(self) -> None:
        if self.vocab_size < 512:
            raise DataError(
                f"data.tokenizer.vocab_size is {self.vocab_size}: give 512 or more (256 are bytes)"
            )
        for name in ("needle_texts", "word_repeats", "passages"):
            if getattr(self, name) < 0:
                raise DataError(f"data.tokenizer.{name} is {getattr(self, name)}: give 0 or more")


@dataclass(frozen=True)
class DataConfig:
    """What a training corpus is made of; its stages say in which proportions (mixture.py).

    datasets: sources made from dataset folders, by a name of your choice.
    shard_samples: samples of one shard. workers: processes that build shards; the result is the
        same for any number.
    """

    seed: int = 0
    banks: BanksConfig = field(default_factory=BanksConfig)
    datasets: Mapping[str, DatasetConfig] = field(default_factory=dict)
    contexts: ContextConfig = field(default_factory=ContextConfig)
    numbers: NumberConfig = field(default_factory=NumberConfig)
    niah: NiahConfig = field(default_factory=NiahConfig)
    pydocs: PydocsConfig = field(default_factory=PydocsConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    shard_samples: int = 256
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("shard_samples", "workers"):
            if getattr(self, name) < 1:
                raise DataError(f"data.{name} is {getattr(self, name)}: give 1 or more")
        if self.seed < 0:
            raise DataError(f"data.seed is {self.seed}: give 0 or more")
        if taken := set(self.datasets) & set(MADE_SOURCES):
            raise DataError(f"data.datasets names {sorted(taken)}, which exist: choose other names")

    def bank_of(self, source: str) -> BankConfig:
        """The banks of a source: drawn here, or made from a dataset."""
        return (
            self.datasets[source].bank if source in self.datasets else getattr(self.banks, source)
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of all sources, in a fixed order."""
        return (*MADE_SOURCES, *self.datasets)
