"""Banks of tiny documents."""

import pytest

from msa_train.memory.bank.snapshot import BankSnapshot
from tests.faults.bank_changes import prepared
from tests.memory.building import tiny_bank
from tests.memory.tiny import FINGERPRINT


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A snapshot that tests only read, of one segment."""
    path = tmp_path_factory.mktemp("banks") / "bank"
    tiny_bank(path)
    return BankSnapshot.open(path, FINGERPRINT)


@pytest.fixture
def bank(tmp_path):
    """The folder of a bank that tests change, of several segments, some documents removed."""
    return prepared(tmp_path / "bank")
