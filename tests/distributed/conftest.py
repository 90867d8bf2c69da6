import pytest

from msa_train.config import load_config
from tests.distributed.runs import settings


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A folder with tiny shards, shared by all runs."""
    from data_pipeline.shards.build import build_shards

    folder = tmp_path_factory.mktemp("data") / "shards"
    build_shards(load_config(settings("unused")).corpus, folder, workers=1)
    return folder
