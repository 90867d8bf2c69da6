"""A bank of the tiny documents, and another with a history."""

import pytest

from tests.faults.bank_changes import prepared
from tests.memory.building import tiny_bank


@pytest.fixture
def path(tmp_path):
    """Of one segment."""
    tiny_bank(tmp_path / "bank")
    return tmp_path / "bank"


@pytest.fixture
def changed(tmp_path):
    """Of several segments, some documents removed."""
    return prepared(tmp_path / "changed")
