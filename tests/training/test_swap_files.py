"""Folders of the optimizer's states."""

import shutil
from types import SimpleNamespace

import pytest

from msa_train.errors import ConfigError
from msa_train.training import swap_files


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setattr(swap_files, "_of_all", lambda value: [value])
    yield
    swap_files.remove()


def test_two_runs_share_a_disk_and_each_removes_its_own(tmp_path):
    other = swap_files.own_folder(tmp_path, 0)
    lock = swap_files._own.pop(other)  # of another process, from here on
    own = swap_files.own_folder(tmp_path, 0)
    assert {*tmp_path.iterdir()} == {other, own}
    swap_files.remove()
    assert [*tmp_path.iterdir()] == [other]
    lock.release()


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    killed = swap_files.own_folder(tmp_path, 0)
    (killed / "0.tensor.swp").write_bytes(b"0")
    swap_files._own.pop(killed).release()
    living = swap_files.own_folder(tmp_path, 0)
    assert [*tmp_path.iterdir()] == [living]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=15 * 10**9))
    with pytest.raises(ConfigError, match=r"nvme_path is .*15.00 GB free on .*need 16.00 GB there"):
        swap_files.own_folder(tmp_path, 10**9)
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nvme_path is .*gone, where .* cannot write: No such"):
        swap_files.own_folder(tmp_path / "gone", 0)
