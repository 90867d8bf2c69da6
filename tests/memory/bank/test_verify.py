"""Reading a whole bank: every changed byte is found, and what nobody needs is counted."""

import contextlib
import shutil

import pytest
import torch

from msa_train.errors import BankError
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.verify import verify_bank
from msa_train.memory.bank.writer import BankWriter
from msa_train.memory.search.loader import bank_view
from tests.memory.building import FILES
from tests.memory.tiny import FINGERPRINT, tiny_model


def questions(count):
    gen = torch.Generator().manual_seed(0)
    config = tiny_model().config
    query = torch.randn(count * 4, config.kv_heads * config.head_dim, generator=gen)
    return query, torch.arange(0, count * 4 + 1, 4)


def ask(path):
    """All states and texts of a bank as an engine would read them."""
    bank = BankSnapshot.open(path, FINGERPRINT)
    memory = bank_view(bank, tiny_model().config.router)
    for layer in tiny_model().config.router_layers:
        memory.search(layer, *questions(40))
    return [(document.text, bank.numbers_of(document.id)) for document in bank]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_by_verify_and_never_used(tiny, tmp_path, name):
    copy = shutil.copytree(tiny.path, tmp_path / "copy")
    file = copy / "segments" / tiny.segments[0].entry.name / name
    whole, texts = file.read_bytes(), ask(tiny.path)
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        with file.open("r+b") as out:  # in place: a thread may still read what was mapped
            out.write(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        assert any(name in problem for problem in verify_bank(copy)["problems"])
        with contextlib.suppress(BankError):  # else: padding, or states that nothing read
            assert ask(copy) == texts
    file.write_bytes(whole)
    assert not verify_bank(copy)["problems"]


def test_verify_counts_what_nobody_needs(bank):
    (bank / "segments" / "stray").mkdir()
    (bank / "segments" / "stray" / "file").write_bytes(b"12345")
    report = verify_bank(bank)
    assert report["orphan_bytes"] == 5 and not report["problems"]


def test_files_that_a_segment_does_not_list_are_of_no_use(bank):
    stray = bank / "segments" / "000001-000000000000" / "stray"
    stray.write_bytes(b"123")
    assert verify_bank(bank)["orphans"] == [str(stray)]
    BankWriter(bank, "add").close()
    assert not stray.exists()
