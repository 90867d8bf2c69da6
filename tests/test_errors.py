"""What the system refuses, in words."""

import errno

import pytest

from msa_train.errors import FileError


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
