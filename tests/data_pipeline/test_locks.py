"""A lock names its holder, and goes with its process."""

import os
import subprocess
import sys

import pytest

from data_pipeline.locks import FileLock, HeldError

DIE = "import os, sys; from data_pipeline.locks import FileLock; from pathlib import Path; "
DIE += "lock = FileLock(Path(sys.argv[1]), 'train'); os._exit(1)"


def test_the_holder_is_named_until_it_lets_go(tmp_path):
    with_lock = FileLock(tmp_path / "lock", "add")
    with pytest.raises(HeldError, match=rf"process {os.getpid()} on .* \(add, since"):
        FileLock(tmp_path / "lock", "remove")
    with_lock.release()
    with_lock.release()
    assert (tmp_path / "lock").read_bytes() == b""
    again = FileLock(tmp_path / "lock", "remove")
    assert again.dead is None
    again.release()


def test_one_that_died_is_recognised(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", DIE, str(tmp_path / "lock")])
    assert dead.wait(60) == 1
    lock = FileLock(tmp_path / "lock", "train")
    assert lock.dead.startswith(f"process {dead.pid} on ")
    lock.release()


def test_a_file_that_cannot_be_opened_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        FileLock(tmp_path / "nowhere" / "lock", "add")
