"""A snapshot told to another process: the same segments, however the bank went on."""

import json

import pytest
import torch

from msa_train.errors import BankError
from msa_train.memory.bank.snapshot import GenerationGoneError
from msa_train.memory.ranks.snapshot import described, opened, pack, unpack
from tests.memory.ranks.banks import add, compact, write


@pytest.fixture
def bank(tmp_path):
    return write(tmp_path / "bank", [[1, 2, 3], [2, 2]], removed=[1])


def told(bank):
    return json.loads(json.dumps(described(bank)))


def test_what_is_told_is_opened_also_when_the_bank_has_grown(bank):
    description = told(bank)
    add(bank.path, [4])
    found = opened(description, bank.live, ())
    assert [each.entry for each in found.segments] == [each.entry for each in bank.segments]
    assert found.starts.tolist() == [0, 3, 5]
    again = opened(told(bank), bank.live, found.segments[:1])
    assert again.segments[0] is found.segments[0] and again.segments[1] is not found.segments[1]


def test_segments_that_are_gone_are_told_from_damage(bank):
    description = told(bank)
    newest = compact(bank.path)
    with pytest.raises(GenerationGoneError, match="open the bank again"):
        opened(description, bank.live, ())
    (newest.segments[0].folder / "documents.arrow").unlink()
    with pytest.raises((BankError, FileNotFoundError)) as caught:
        opened(told(newest), newest.live, ())
    assert not isinstance(caught.value, GenerationGoneError)


@pytest.mark.parametrize("count", [0, 1, 8, 13])
def test_bits_are_packed_and_unpacked(count):
    bits = torch.arange(count) % 3 == 0
    assert len(pack(bits)) == -(-count // 8)
    assert torch.equal(unpack(pack(bits), count), bits)
