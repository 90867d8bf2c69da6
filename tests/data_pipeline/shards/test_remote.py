import errno
import os
import threading
import time
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copytree
from typing import NamedTuple

import pytest

from data_pipeline.errors import DataError
from data_pipeline.shards import remote
from data_pipeline.shards.loader import ShardLoader
from data_pipeline.shards.reader import ShardReader
from tests.buckets import stand_in

SAMPLES = 24  # shards of 10, 10 and 4; stages of 6, 6 and 12


def unlink(path):
    path.unlink()


class RangeHandler(SimpleHTTPRequestHandler):
    """A static server that answers requests for a range of bytes, as object stores do.

    faults: what goes wrong with the next requests of a file, one after another.
    """

    asked = faults = None

    def do_HEAD(self):
        if not self._fails():
            super().do_HEAD()

    def _fails(self):
        """Whether an error was sent."""
        name = os.path.basename(self.path)
        self.fault = self.faults[name].pop(0) if self.faults.get(name) else None
        if isinstance(self.fault, int):
            self.send_error(self.fault)
        elif self.fault == "slow":
            time.sleep(1.5)
        return isinstance(self.fault, int)

    def do_GET(self):
        path = self.translate_path(self.path)
        if self._fails():
            return None
        if not os.path.isfile(path):
            return self.send_error(404)
        data, status = Path(path).read_bytes(), 200
        self.asked.append((os.path.basename(path), self.headers.get("Range")))
        size = len(data)
        if self.fault == "wrong":
            data = bytes(size)
        if (asked := self.headers.get("Range", "")).startswith("bytes="):
            first, last = asked.removeprefix("bytes=").split("-")
            data, status = data[int(first) : int(last) + 1], 206
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{size}")
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if self.fault == "cut" else data)
        self.close_connection = self.fault == "cut"

    def log_message(self, *_):
        pass


class Served(NamedTuple):
    """faults: of each file, what goes wrong next."""

    url: str
    asked: list
    folder: Path
    faults: dict


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def served(shards, tmp_path):
    folder = copytree(shards, tmp_path / "behind")
    asked, faults = [], {}
    handler = type("Handler", (RangeHandler,), {"asked": asked, "faults": faults})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Served(f"http://127.0.0.1:{server.server_port}", asked, folder, faults)
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_shards_behind_a_url_are_copied_once(served, samples, tmp_path):
    url, asked, *_ = served
    for _ in range(2):
        reader = ShardReader(url, cache=tmp_path / "cache")
        assert [reader[i] for i in range(SAMPLES)] == samples
        assert reader.tokenizer().fingerprint == reader.manifest.tokenizer
        reader.close()
    tars = [name for name, _ in asked if name.endswith(".tar")]
    assert sorted(tars) == [f"shard-{i:06d}.tar" for i in range(3)]


def test_past_the_cache_samples_are_read_one_by_one(served, samples, tmp_path):
    url, asked, *_ = served
    size = ShardReader(url, cache=tmp_path / "first").manifest.shards[0]
    reader = ShardReader(url, cache=tmp_path / "cache", cache_gb=(size + 1) / 1e9)
    asked.clear()
    assert [reader[i] for i in range(SAMPLES)] == samples
    assert [path.name for path in (tmp_path / "cache").glob("*.tar")] == ["shard-000000.tar"]
    assert sum(name == "shard-000001.tar" and bool(part) for name, part in asked) == 10


def test_a_cache_needs_no_file_locks(served, samples, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(remote.fcntl, "flock", flock)
    with closing(ShardReader(served.url, cache=tmp_path / "cache")) as reader:
        assert [reader[i] for i in range(SAMPLES)] == samples
    assert len(list((tmp_path / "cache").glob("shard-*.tar"))) == 3


def test_what_is_missing_behind_a_url_is_named(served, tmp_path):
    url, _, folder, _ = served
    unlink(folder / "shard-000002.tar")
    with pytest.raises(DataError, match=r"http://.*shard-000002.tar is missing"):
        ShardReader(url, cache=tmp_path / "cache")
    unlink(folder / "manifest.json")
    with pytest.raises(DataError, match=r"http://.*/manifest.json cannot be read"):
        ShardReader(url, cache=tmp_path / "cache")
    with pytest.raises(DataError, match="nowhere"):
        ShardReader("nowhere://x/y", cache=tmp_path / "cache")


@pytest.mark.parametrize("cache_gb", [1.0, 0.0])
@pytest.mark.parametrize("faults", [["cut", "cut"], [500, "cut", 503], ["wrong"]])
def test_what_goes_wrong_on_the_way_is_tried_again(served, samples, tmp_path, faults, cache_gb):
    reader = ShardReader(served.url, cache=tmp_path / "cache", cache_gb=cache_gb)
    served.faults["shard-000001.tar"] = [*faults]
    assert [reader[i] for i in range(SAMPLES)] == samples
    assert not served.faults["shard-000001.tar"] and not list((tmp_path / "cache").glob(".*.tar"))
    reader.close()


def test_the_loader_reads_ahead_in_the_same_order(served, shards, tmp_path):
    def order(*where, **how):
        loader = ShardLoader(ShardReader(*where, **how), seed=3)
        loader.load_state_dict({"consumed": 5})
        found = [sample.to_bytes() for sample in loader]
        loader.close()
        return found

    served.faults["shard-000000.tar"] = ["cut", "slow", 500]
    for cache_gb in (1.0, 0.0):
        behind = order(served.url, cache=tmp_path / f"cache-{cache_gb}", cache_gb=cache_gb)
        assert behind == order(shards)


def test_a_server_that_is_slow_is_named_after_its_time(served, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "SILENCE_S", 0.2)
    monkeypatch.setattr(remote, "TRIES", 2)
    served.faults["shard-000001.tar"] = ["slow"] * 8
    with pytest.raises(
        DataError, match=r"http://.*1.tar cannot be reached: timed out: .*; 2 tries"
    ):
        ShardReader(served.url, cache=tmp_path / "cache")


def test_what_is_forbidden_is_not_asked_for_again(served, tmp_path):
    served.faults["shard-000001.tar"] = [403] * 8
    with pytest.raises(DataError, match=r"1.tar cannot be reached: not allowed: 403"):
        ShardReader(served.url, cache=tmp_path / "cache")
    assert len(served.faults["shard-000001.tar"]) == 6  # of a size it asks in two ways
    served.faults["shard-000001.tar"] = []
    reader = ShardReader(served.url, cache=tmp_path / "cache")
    served.faults["shard-000001.tar"] = [403]
    with pytest.raises(
        DataError, match=r"sample 12 of http://.*1.tar cannot be read \(not allowed"
    ):
        reader[12]


def test_bytes_that_stay_wrong_are_damage(served, tmp_path):
    path = served.folder / "shard-000001.tar"
    path.write_bytes(bytes(path.stat().st_size))
    reader = ShardReader(served.url, cache=tmp_path / "cache")
    with pytest.raises(DataError, match=r"sample 12 of http://.*1.tar is damaged"):
        reader[12]


def test_a_server_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        DataError, match=r"http://127.0.0.1:9/manifest.json cannot be read \(.*5 tries"
    ):
        ShardReader("http://127.0.0.1:9", cache=tmp_path / "cache")


@pytest.fixture
def bucket(shards, monkeypatch):
    """The URL of the shards on a stand-in of S3, and its file system."""
    with stand_in(monkeypatch) as system:
        for path in shards.rglob("*"):
            if path.is_file():
                system.put_file(str(path), f"bucket/run/{path.relative_to(shards)}")
        yield "s3://bucket/run", system


def test_shards_in_a_bucket_are_those_of_the_folder(bucket, shards, samples, tmp_path):
    url, system = bucket
    local = [sample.to_bytes() for sample in ShardLoader(ShardReader(shards))]
    for cache_gb in (1.0, 0.0):
        loader = ShardLoader(ShardReader(url, cache=tmp_path / f"c{cache_gb}", cache_gb=cache_gb))
        assert [sample.to_bytes() for sample in loader] == local
        loader.close()
    system.rm("bucket/run/shard-000002.tar")
    with pytest.raises(DataError, match=r"s3://bucket/run: shard-000002.tar is missing"):
        ShardReader(url, cache=tmp_path / "cache")
    with pytest.raises(DataError, match=r"s3://nowhere/manifest.json cannot be read"):
        ShardReader("s3://nowhere", cache=tmp_path / "cache")
