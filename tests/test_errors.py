"""What the system refuses, in words."""

import errno
from pathlib import Path

import pytest
import torch

from msa_train.errors import FileError, failed_writes


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room on"),
        (OSError(errno.EACCES, "Denied", "a/b"), "a/b: Denied; give a path that may be written"),
        (OSError(errno.EEXIST, "Exists", ".part", None, "a/b"), "a/b: Exists; something else has"),
        (OSError(errno.ENOENT, "Gone", "a/b"), "a/b: Gone"),
        (OSError("3 written of 4"), "3 written of 4"),
    ],
)
def test_the_file_and_what_to_do_are_named(error, said):
    refused = FileError.of(error)
    assert str(refused).startswith(said) and refused.exit_code == 11


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Exception("I/O error: ... (os error 28)"), "a/b: No space left on device; make room on"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . x"), "a/b: a file in it could"),
    ],
)
def test_a_failed_write_of_a_library_names_the_folder(error, said):
    with pytest.raises(FileError, match=said), failed_writes(Path("a/b")):
        raise error
    with pytest.raises(RuntimeError, match="a bug"), failed_writes(Path("a/b")):
        raise RuntimeError("a bug")


def test_torch_on_a_full_disk_is_such_a_write():
    with pytest.raises(FileError, match="/dev: a file in it"), failed_writes(Path("/dev")):
        torch.save({"x": torch.zeros(1 << 16)}, "/dev/full")
