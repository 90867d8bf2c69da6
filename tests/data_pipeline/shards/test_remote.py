import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copytree

import pytest

from data_pipeline.errors import DataError
from data_pipeline.shards.reader import ShardReader

SAMPLES = 24  # shards of 10, 10 and 4; stages of 6, 6 and 12


def unlink(path):
    path.unlink()


class RangeHandler(SimpleHTTPRequestHandler):
    """A static server that answers requests for a range of bytes, as object stores do."""

    asked = None

    def do_GET(self):
        path = self.translate_path(self.path)
        if not os.path.isfile(path):
            return self.send_error(404)
        data, status = Path(path).read_bytes(), 200
        self.asked.append((os.path.basename(path), self.headers.get("Range")))
        size = len(data)
        if (asked := self.headers.get("Range", "")).startswith("bytes="):
            first, last = asked.removeprefix("bytes=").split("-")
            data, status = data[int(first) : int(last) + 1], 206
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{size}")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(shards, tmp_path):
    """(URL, what was asked for, the folder behind it)."""
    folder = copytree(shards, tmp_path / "behind")
    asked = []
    handler = type("Handler", (RangeHandler,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked, folder
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_shards_behind_a_url_are_copied_once(served, samples, tmp_path):
    url, asked, _ = served
    for _ in range(2):
        reader = ShardReader(url, cache=tmp_path / "cache")
        assert [reader[i] for i in range(SAMPLES)] == samples
        assert reader.tokenizer().fingerprint == reader.manifest.tokenizer
        reader.close()
    tars = [name for name, _ in asked if name.endswith(".tar")]
    assert sorted(tars) == [f"shard-{i:06d}.tar" for i in range(3)]


def test_past_the_cache_samples_are_read_one_by_one(served, samples, tmp_path):
    url, asked, _ = served
    size = ShardReader(url, cache=tmp_path / "first").manifest.shards[0]
    reader = ShardReader(url, cache=tmp_path / "cache", cache_gb=(size + 1) / 1e9)
    asked.clear()
    assert [reader[i] for i in range(SAMPLES)] == samples
    assert [path.name for path in (tmp_path / "cache").glob("*.tar")] == ["shard-000000.tar"]
    assert sum(name == "shard-000001.tar" and bool(part) for name, part in asked) == 10


def test_what_is_missing_behind_a_url_is_named(served, tmp_path):
    url, _, folder = served
    unlink(folder / "shard-000002.tar")
    with pytest.raises(DataError, match=r"http://.*shard-000002.tar is missing"):
        ShardReader(url, cache=tmp_path / "cache")
    unlink(folder / "manifest.json")
    with pytest.raises(DataError, match=r"http://.*/manifest.json cannot be read"):
        ShardReader(url, cache=tmp_path / "cache")
    with pytest.raises(DataError, match="nowhere"):
        ShardReader("nowhere://x/y", cache=tmp_path / "cache")
