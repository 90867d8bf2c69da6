"""A run that reads its shards from a bucket or a web server ends as a local one."""

import os
from functools import partial
from http.server import ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.shards.build import build_shards
from data_pipeline.shards.upload import upload_shards
from msa_train.config import load_config
from tests.buckets import stand_in
from tests.data_pipeline.shards.test_remote import RangeHandler
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import go_on, logged, settings

pytestmark = pytest.mark.slow

SMALL = {"data__shard_samples": 3}  # of 8
SEVERAL = 3


def train_there(environment, runs):
    """On each rank, which otherwise has the environment of its server."""
    os.environ |= environment
    return go_on(runs)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run from the folder, and three from elsewhere that stop after two of four steps."""
    root = tmp_path_factory.mktemp("remote")
    folder = root / "here" / "shards"
    build_shards(load_config(settings("unused", **SMALL)).corpus, folder, workers=1)
    assert len([*folder.glob("*.tar")]) == SEVERAL
    handler = type("Handler", (RangeHandler,), {"asked": [], "faults": {}})
    with pytest.MonkeyPatch.context() as patch, stand_in(patch):
        upload_shards(folder, "s3://bucket/run")
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        Thread(target=server.serve_forever, daemon=True).start()
        places = {
            "folder": {"training__shards": folder},
            "web": {"training__shards": f"http://127.0.0.1:{server.server_port}"},
            "bucket": {"training__shards": "s3://bucket/run"},
            "bucket-uncached": {"training__shards": "s3://bucket/run", "training__cache_gb": 0},
        }
        runs = []
        for name, place in places.items():
            arguments = settings(root / name, training__zero_stage=2, **SMALL, **place)
            runs += [(arguments, 2)] * (name != "folder") + [(arguments, None)]
        environment = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
        run_ranks(2, train_there, environment, runs)
        server.shutdown()
        server.server_close()
    return root


@pytest.mark.parametrize("name", ["web", "bucket", "bucket-uncached"])
def test_a_run_from_elsewhere_stops_goes_on_and_ends_as_a_local_one(root, name):
    rows, local = logged(root / name), logged(root / "folder")
    assert [row["loss/lm"] for row in rows] == [row["loss/lm"] for row in local]
    last = "checkpoints/step-000000004/weights-tp0.safetensors"
    expected = load_file(root / "folder" / last)
    for key, weight in load_file(root / name / last).items():
        assert torch.equal(weight, expected[key]), key
    assert (root / name / "checkpoints" / "step-000000002").is_dir(), "it was stopped there"
    kept = len([*(root / name / "shard-cache").glob("*.tar")])
    assert kept == 0 if name == "bucket-uncached" else kept > 0
