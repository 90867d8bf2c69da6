"""What a run reads, after checking that it is what its settings say."""

from __future__ import annotations

from data_pipeline.shards.reader import ShardReader
from data_pipeline.tokenizer import Tokenizer, load_tokenizer
from msa_train.config import Config
from msa_train.errors import ConfigError
from msa_train.training.collate import Collate
from msa_train.training.held_out import HeldOut


def open_shards(config: Config) -> ShardReader:
    """The run's shards, after checking that they are those of the config."""
    reader = ShardReader(
        config.shards,
        skip_damaged=config.training.damaged_samples == "skip",
        cache=config.path / "shard-cache",
        cache_gb=config.training.cache_gb,
    )
    if not reader.manifest.matches(config.corpus):
        raise ConfigError(
            f"{config.shards} was built from other settings of data or stages than this config's: "
            "build them again (msa data build), or set another output"
        )
    return reader


def checked_tokenizer(config: Config, reader: ShardReader) -> Tokenizer:
    """The shards' tokenizer, after checking that the model, and what it starts from, know it."""
    tokenizer = reader.tokenizer()
    if tokenizer.vocab_size > config.model.vocab_size:  # backbones have rows to spare
        raise ConfigError(
            f"model.vocab_size is {config.model.vocab_size}, but the tokenizer of {config.shards} "
            f"has {tokenizer.vocab_size} tokens: set model.vocab_size to that"
        )
    start = config.training.start_from
    expected = None if start is None else load_tokenizer(start).fingerprint
    if expected not in (None, tokenizer.fingerprint):
        raise ConfigError(
            f"training.start_from is {start}, whose tokenizer is not that of {config.shards}: set "
            f"data.tokenizer.path to {start} and build the shards again"
        )
    return tokenizer


def share_of(config: Config, ranks: int) -> int:
    """Samples of a step that each of `ranks` data-parallel ranks reads."""
    share, rest = divmod(config.training.batch_samples, ranks)
    if rest:
        raise ConfigError(
            f"training.batch_samples is {config.training.batch_samples}, which {ranks} data-"
            "parallel ranks cannot share: give a multiple"
        )
    return share


def open_held_out(config: Config, collate: Collate) -> HeldOut | None:
    """The run's held-out samples, if it evaluates any."""
    if not config.training.held_out_every:
        return None
    reader = ShardReader(config.path / "held_out")
    if not reader.manifest.matches(config.held_out):
        raise ConfigError(
            f"{reader.directory} was built from other settings: build it again (msa data build)"
        )
    return HeldOut(reader, collate, config.model.router_layers)
