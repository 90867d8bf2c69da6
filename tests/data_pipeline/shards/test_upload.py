"""A set in a bucket is there whole or not at all."""

import re
from shutil import copytree

import pytest

from data_pipeline.errors import DataError
from data_pipeline.processes import InterruptedBuild
from data_pipeline.shards import remote, upload
from data_pipeline.shards.reader import ShardReader
from data_pipeline.shards.upload import Uploaded, upload_shards
from tests.buckets import stand_in

URL = "s3://bucket/run"


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)
    with stand_in(monkeypatch) as system:
        yield system


def names(system):
    return {path.removeprefix("bucket/run/") for path in system.find("bucket/run", refresh=True)}


def test_an_upload_that_was_cut_off_shows_nothing_and_is_taken_up(
    bucket, shards, samples, tmp_path, monkeypatch
):
    put, tried = type(bucket).put_file, []

    def fails(self, local, path, **how):
        tried.append(path)
        if path.endswith("shard-000001.tar"):
            raise ConnectionError("cut off")
        return put(self, local, path, **how)

    monkeypatch.setattr(upload, "_COPIED_AT_ONCE", 1)
    monkeypatch.setattr(type(bucket), "put_file", fails)
    with pytest.raises(
        InterruptedBuild, match=r"s3://.*1.tar cannot be written \(cut off; 5 tries\): upload again"
    ):
        upload_shards(shards, URL)
    assert "upload.json" in names(bucket) and "manifest.json" not in names(bucket)
    with pytest.raises(DataError, match=r"manifest.json cannot be read"):
        ShardReader(URL, cache=tmp_path / "early")
    other = copytree(shards, tmp_path / "other")
    manifest = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(
        re.sub(r'"batch_samples": \d+', '"batch_samples": 7', manifest)
    )
    with pytest.raises(DataError, match=r"run/upload.json is of another shard set, whose upload"):
        upload_shards(other, URL)

    monkeypatch.setattr(type(bucket), "put_file", put)
    there = names(bucket) - {"upload.json"}
    done = upload_shards(shards, URL)
    assert done.kept == len(there) and "shard-000000.tar" in there
    files = {str(path.relative_to(shards)) for path in shards.rglob("*") if path.is_file()}
    assert names(bucket) == files and done.files + done.kept == len(files)
    reader = ShardReader(URL, cache=tmp_path / "cache")
    assert [reader[i] for i in range(len(reader))] == samples

    assert upload_shards(shards, URL) == Uploaded(0, 0, len(files)), "it is there"
    bucket.rm_file("bucket/run/shard-000001.tar")
    assert upload_shards(shards, URL).files == 1
    with pytest.raises(DataError, match=r"manifest.json is of another shard set: give another URL"):
        upload_shards(other, URL)


def test_only_whole_sets_go_and_only_to_where_nothing_else_is(bucket, shards, tmp_path):
    for url in ("http://127.0.0.1:9/x", "folder/x", "file:///x"):
        with pytest.raises(DataError, match=rf"{url} is no bucket: give the URL of one"):
            upload_shards(shards, url)
    with pytest.raises(DataError, match=r"s3://none/run/upload.json cannot be written"):
        upload_shards(shards, "s3://none/run")
    bucket.pipe_file("bucket/run/shard-000000.tar", b"of somebody")
    with pytest.raises(DataError, match=r"0.tar is there, but neither manifest.json nor"):
        upload_shards(shards, URL)
    lacking = copytree(shards, tmp_path / "lacking")
    (lacking / "shard-000001.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"shard-000001.tar is empty"):
        upload_shards(lacking, URL)
