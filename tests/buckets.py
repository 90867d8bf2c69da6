"""A stand-in of S3 (moto) with one bucket, for this process and those that it starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system of it; the bucket is s3://bucket."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: make setup")
    server = pytest.importorskip("moto.server", reason="moto is not installed: make setup")
    served = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        system = s3fs.S3FileSystem()
        system.mkdir("bucket")
        yield system
        system.rm("bucket", recursive=True)  # moto keeps it from server to server
    finally:
        served.stop()
        s3fs.S3FileSystem.clear_instance_cache()
