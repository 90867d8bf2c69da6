"""The manifest: read whole, or refused with the reason."""

import hashlib
import shutil

import pytest

from msa_train.errors import BankError
from msa_train.memory.bank.manifest import MANIFEST, BankManifest, building_name
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.writer import BankWriter
from tests.memory.building import tiny_bank


@pytest.fixture
def file(tiny, tmp_path):
    """The manifest of a copy."""
    return shutil.copytree(tiny.path, tmp_path / "copy") / MANIFEST


@pytest.mark.parametrize(
    ("manifest", "message"),
    [("{", "not the manifest"), ("{}", "not the manifest"), (None, "has no manifest.json")],
)
def test_a_broken_manifest_is_refused(file, tmp_path, manifest, message):
    file.unlink() if manifest is None else file.write_text(manifest)
    with pytest.raises(BankError, match=message):
        BankSnapshot.open(tmp_path / "copy")


def test_every_flipped_bit_of_a_manifest_is_refused(file, tmp_path):
    whole = file.read_bytes()
    for place in range(len(whole) - 1):  # the last byte is a newline after the digest
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(BankError, match=r"damaged|bank format"):
            BankManifest.load(tmp_path / "copy")


def test_a_newer_format_is_refused(file, tmp_path):
    file.write_text(file.read_text().replace('"version": 3', '"version": 4'))
    with pytest.raises(BankError, match="format 4; this version reads 2 and 3: build"):
        BankSnapshot.open(tmp_path / "copy")


def test_the_format_before_is_read_and_written_to(file, tmp_path):
    """A bank of version 2, whose only difference is that it stores metadata with each part."""
    body, _, _ = file.read_text().replace('"version": 3', '"version": 2').rstrip().rpartition("\n")
    file.write_text(f"{body}\n{hashlib.sha256(body.encode()).hexdigest()}\n")
    assert len(BankSnapshot.open(tmp_path / "copy")) == 7
    with BankWriter(tmp_path / "copy", "remove") as writer:
        writer.remove([2])
    assert '"version": 3' in file.read_text() and len(BankSnapshot.open(tmp_path / "copy")) == 6


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(BankError, match="dtype is 'int8'"):
        tiny_bank(tmp_path / "bank", dtype="int8")


def test_a_folder_without_a_manifest_is_refused_with_the_reason(tmp_path):
    bank = tmp_path / "bank"
    with pytest.raises(BankError, match="no such folder"):
        BankManifest.load(bank)
    building_name(bank).mkdir()
    with pytest.raises(BankError, match=r"its build is not finished .*\.bank\.building"):
        BankManifest.load(bank)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(BankError, match="it is a file; give a bank's folder"):
        BankManifest.load(file)
