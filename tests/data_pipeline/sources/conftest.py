import pytest

from data_pipeline.dataset import write_dataset
from data_pipeline.sources.base import NumberConfig
from data_pipeline.sources.dataset_config import DatasetConfig
from data_pipeline.sources.dataset_tables import prepare
from data_pipeline.sources.datasets import DatasetSource
from tests.data_pipeline.sources.cities import passages, questions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "cities"
    write_dataset(folder, passages(), questions())
    return folder


@pytest.fixture
def make(folder, tokenizer, tmp_path):
    def source(held_out=False, split="train", seed=0, **settings):
        config = DatasetConfig(str(folder), **settings)
        tables = prepare(config, split, config.document_tokens, tokenizer, tmp_path)
        return DatasetSource("cities", config, tables, NumberConfig(), held_out, seed)

    return source
