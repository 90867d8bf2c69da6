"""The lock of a bank: one writer, named to the others, gone with its process."""

import os
import subprocess
import sys

import pytest

from msa_train.errors import BankError
from msa_train.memory.bank.lock import LOCK, BusyError, WriterLock
from msa_train.memory.bank.verify import verify_bank
from msa_train.memory.bank.writer import BankWriter


def test_a_second_writer_is_refused_and_told_of_the_first(bank):
    with (
        BankWriter(bank, "compact"),
        pytest.raises(BankError, match=f"being written by process {os.getpid()} on .*compact"),
    ):
        BankWriter(bank, "add")
    BankWriter(bank, "add").close()


def test_a_dead_writer_is_recognised(bank, capfd):
    code = (
        "import os; from msa_train.memory.bank.writer import BankWriter; "
        f"writer = BankWriter({str(bank)!r}, 'compact'); os._exit(1)"
    )
    dead = subprocess.Popen([sys.executable, "-c", code])
    assert dead.wait(120) == 1
    (bank / "segments" / "stray").mkdir()
    BankWriter(bank, "add").close()
    assert f"process {dead.pid} on" in capfd.readouterr().err
    assert not verify_bank(bank)["orphans"]


def test_a_lock_that_was_released_names_nobody(tmp_path):
    lock = WriterLock(tmp_path, "add")
    with pytest.raises(BusyError, match=f"by process {os.getpid()} on .* \\(add, since"):
        WriterLock(tmp_path, "remove")
    lock.release()
    lock.release()
    assert (tmp_path / LOCK).read_bytes() == b""
    again = WriterLock(tmp_path, "remove")
    assert again.dead is None
    again.release()
    with pytest.raises(BankError, match="cannot be written"):
        WriterLock(tmp_path / "nowhere", "add")
