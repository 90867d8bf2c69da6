import pytest

from data_pipeline.shards.reader import ShardReader
from msa_train.bench.data import measure, needs
from msa_train.config import load_config
from msa_train.errors import ConfigError
from tests.distributed.conftest import shards  # noqa: F401 (a fixture: tiny shards)
from tests.distributed.runs import settings


def run(**overrides):
    return load_config(settings("unused", **overrides))


def test_parts_of_reading_add_up_beside_their_floor(shards):  # noqa: F811
    found = measure(run(training__shards=shards), 3, step_s=0.5, tokens=1e6)
    rows = {row["what"]: row for row in found["rows"]}
    parts = ["read and CRC-32", "decode", "tokenise", "collate"]
    assert list(rows) == ["floor: tar and JSON", *parts, "all of them"]
    whole = rows["all of them"]
    assert whole["ms_per_sample"] == pytest.approx(sum(rows[p]["ms_per_sample"] for p in parts))
    assert whole["samples_per_s"] * found["bytes"] / 3 / 1e6 == pytest.approx(whole["mb_per_s"])
    assert rows["tokenise"]["ms_per_sample"] > rows["read and CRC-32"]["ms_per_sample"]
    build = found["build"]
    assert build["samples"] * ShardReader(shards).manifest.stages[0].document_tokens >= 1e6
    size = build["bytes"] / build["samples"]
    whole_tar = (shards / "shard-000000.tar").stat().st_size / len(ShardReader(shards))
    assert build["cpu_hours"] > 0 and size == pytest.approx(whole_tar, rel=0.3)
    assert found["samples"] == 3 and found["needs"]["samples_per_s"] == 2 / 0.5


def test_what_ranks_share_is_read_by_each():
    alone = needs(run(training__batch_samples=64), 100, 64, 2.0)
    assert alone["processes"] == 4 and alone["share_of_a_rank"] == pytest.approx(0.05)
    shared = run(training__batch_samples=64, training__document_parallel=4)
    assert needs(shared, 100, 64, 2.0)["processes"] == 13


def test_shards_behind_a_url_are_not_measured():
    with pytest.raises(ConfigError, match=r"training.shards is s3://b/s: measure shards in a fol"):
        measure(run(training__shards="s3://b/s"), 3)
