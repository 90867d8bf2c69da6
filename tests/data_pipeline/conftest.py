import numpy as np
import pytest

from data_pipeline.corpus import train_tokenizer
from data_pipeline.mixture import (
    BankConfig,
    BanksConfig,
    DataConfig,
    Stage,
    TokenizerConfig,
)
from data_pipeline.samples import SampleBuilder
from data_pipeline.shards import build_shards
from data_pipeline.sources.niah import NiahSource
from data_pipeline.sources.pydocs import PydocsSource


@pytest.fixture(scope="session")
def config():
    """A corpus of seconds: three stages, both sources."""
    return DataConfig(
        samples=24,
        banks=BanksConfig(niah=BankConfig(1.0, 16, 8), pydocs=BankConfig(0.5, 8, 4)),
        stages=(Stage(0.25, 0), Stage(0.25, 48), Stage(0.5)),
        tokenizer=TokenizerConfig(vocab_size=2048, needle_texts=300, word_repeats=30),
        shard_samples=10,
        workers=1,
    )


@pytest.fixture(scope="session")
def tokenizer(config):
    return train_tokenizer(config)


@pytest.fixture(scope="session")
def niah(config, tokenizer):
    return NiahSource(config.niah, tokenizer)


@pytest.fixture(scope="session")
def pydocs(config, tokenizer):
    return PydocsSource(config.pydocs, tokenizer)


@pytest.fixture(scope="session")
def builder(config, tokenizer):
    return SampleBuilder(config, tokenizer)


@pytest.fixture(scope="session")
def samples(config, builder):
    """Every sample of the corpus."""
    return [builder.build(i) for i in range(config.samples)]


@pytest.fixture(scope="session")
def shards(config, tokenizer, tmp_path_factory):
    """The corpus on disk, built by one process."""
    folder = tmp_path_factory.mktemp("data") / "100%d"
    build_shards(config, folder, 1, tokenizer)
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(0)
