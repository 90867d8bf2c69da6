"""One run at a time in an output: the holder is named, and a dead one holds nothing."""

import errno
import os

import pytest

from msa_train.errors import ConfigError
from msa_train.training.output_lock import LOCK, BusyOutputError, OutputLock


def test_a_second_run_is_refused_and_told_of_the_first(megatron, tmp_path):
    first = OutputLock(tmp_path / "run")
    with pytest.raises(
        BusyOutputError, match=rf"run is being trained in by process {os.getpid()} "
    ):
        OutputLock(tmp_path / "run")
    OutputLock(tmp_path / "other").release()
    first.release()
    OutputLock(tmp_path / "run").release()


def test_a_run_that_died_is_named_and_followed(megatron, tmp_path, capsys):
    held = '{"process": 77, "host": "far", "operation": "train", "since": "now"}'
    (tmp_path / LOCK).write_text(held)
    OutputLock(tmp_path).release()
    assert "process 77 on far (train, since now) died in it" in capsys.readouterr().err
    OutputLock(tmp_path).release()
    assert capsys.readouterr().err == ""


def test_an_output_that_cannot_be_written_is_named(megatron, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="set another output"):
        OutputLock(tmp_path / "file")


def test_a_file_system_without_locks_is_said_and_no_reason_to_stop(
    megatron, tmp_path, monkeypatch, capsys
):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("data_pipeline.locks.fcntl.flock", refuse)
    OutputLock(tmp_path).release()
    assert "cannot be locked here" in capsys.readouterr().err
