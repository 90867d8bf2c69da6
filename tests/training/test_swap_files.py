"""Folders of the optimizer's states."""

import errno
import os
import shutil
from types import SimpleNamespace

import pytest

from msa_train.errors import ConfigError, FileError
from msa_train.training import swap_files


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setattr(swap_files, "_of_all", lambda value: [value])
    monkeypatch.setattr(swap_files, "check", lambda path, aio: None)
    yield
    swap_files.remove()


def test_two_runs_share_a_disk_and_each_removes_its_own(tmp_path):
    other = swap_files.own_folder(tmp_path, {}, [1])
    lock = swap_files._own.pop(other)  # of another process, from here on
    own = swap_files.own_folder(tmp_path, {}, [1])
    assert {*tmp_path.iterdir()} == {other, own}
    swap_files.remove()
    assert [*tmp_path.iterdir()] == [other]
    lock.release()


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    killed = swap_files.own_folder(tmp_path, {}, [1])
    (killed / "0.tensor.swp").write_bytes(b"0")
    swap_files._own.pop(killed).release()
    living = swap_files.own_folder(tmp_path, {}, [1])
    assert [*tmp_path.iterdir()] == [living]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=15 * 10**9))
    with pytest.raises(ConfigError, match=r"nvme_path is .*15.00 GB free on .*need 16.00 GB there"):
        swap_files.own_folder(tmp_path, {}, [10**9])
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match=r"nvme_path is .*gone, where .* cannot write .*: No such"
    ):
        swap_files.own_folder(tmp_path / "gone", {}, [1])


def test_a_disk_that_cannot_be_read_as_deepspeed_does_is_refused(tmp_path, monkeypatch):
    def read(descriptor, places, offset):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "preadv", read)
    with pytest.raises(ConfigError, match=r"past its cache, at addresses in steps of 8 bytes: Inv"):
        swap_files.own_folder(tmp_path, {}, [6, 4])
    monkeypatch.setattr(os, "preadv", lambda descriptor, places, offset: 0)
    with pytest.raises(ConfigError, match=r"past its cache, .*: Input/output error"):
        swap_files.own_folder(tmp_path, {}, [6, 4])
    assert not [*tmp_path.iterdir()]


def test_a_disk_that_fills_while_files_grow_is_named(tmp_path, monkeypatch):
    folder = swap_files.own_folder(tmp_path, {}, [1])
    (folder / "0.tensor.swp").write_bytes(b"0")
    swap_files.check_room()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    swap_files.check_room()  # nothing has grown
    (folder / "1.tensor.swp").write_bytes(b"1")
    with pytest.raises(FileError, match=f"{folder}: No space left on device; make room"):
        swap_files.check_room()


def test_a_killed_compiler_is_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(swap_files, "_COMPILING_S", 0)
    (tmp_path / "async_io").mkdir()
    (tmp_path / "async_io" / "lock").touch()
    with pytest.raises(ConfigError, match=r"async_io/lock: .* remove that file if none does"):
        swap_files._wait_for_compilers()


def test_what_is_compiled_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    swap_files._wait_for_compilers()
    said = capsys.readouterr().err
    for op in ("pin_memory", "async_io"):
        assert f"DeepSpeed's {op} is compiled into {tmp_path / op}" in said
        (tmp_path / op / f"{op}.so").touch()
    swap_files._wait_for_compilers()
    assert not capsys.readouterr().err
