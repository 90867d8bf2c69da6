import numpy as np
import pytest

from data_pipeline.settings import (
    BanksConfig,
    CorpusStage,
    DataConfig,
    StageData,
    TokenizerConfig,
    TrainingCorpus,
)
from data_pipeline.shards.build import build_shards
from data_pipeline.shards.sampling import SampleBuilder
from data_pipeline.sources.base import BankConfig
from data_pipeline.sources.niah import NiahSource
from data_pipeline.sources.pydocs import PydocsSource
from data_pipeline.tokenizer_training import corpus_tokenizer


@pytest.fixture(scope="session")
def config():
    """Both sources, in seconds."""
    return DataConfig(
        banks=BanksConfig(niah=BankConfig(1.0, 16, 8), pydocs=BankConfig(0.5, 8, 4)),
        tokenizer=TokenizerConfig(vocab_size=2048, needle_texts=300, word_repeats=30),
        shard_samples=10,
        workers=1,
    )


@pytest.fixture(scope="session")
def corpus(config):
    """Three stages: 24 samples."""
    amounts = {0: 6, 48: 6, None: 12}
    stages = (CorpusStage(StageData(length), samples=n) for length, n in amounts.items())
    return TrainingCorpus(config, tuple(stages))


@pytest.fixture(scope="session")
def tokenizer(corpus):
    return corpus_tokenizer(corpus)


@pytest.fixture(scope="session")
def niah(config, tokenizer):
    return NiahSource(config.niah, tokenizer)


@pytest.fixture(scope="session")
def pydocs(config, tokenizer):
    return PydocsSource(config.pydocs, tokenizer)


@pytest.fixture(scope="session")
def builder(corpus, tokenizer, tmp_path_factory):
    return SampleBuilder(corpus, tokenizer, tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def samples(builder):
    """Every sample of the corpus."""
    return [builder.build(i) for i in range(len(builder))]


@pytest.fixture(scope="session")
def shards(corpus, tokenizer, tmp_path_factory):
    """The corpus on disk, built by one process."""
    folder = tmp_path_factory.mktemp("data") / "100%d"
    build_shards(corpus, folder, 1, tokenizer)
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(0)
