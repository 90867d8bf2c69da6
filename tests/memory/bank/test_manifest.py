"""The manifest: read whole, or refused with the reason."""

import shutil

import pytest

from msa_train.errors import BankError
from msa_train.memory.bank.manifest import MANIFEST, BankManifest, building_name
from msa_train.memory.bank.snapshot import BankSnapshot
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
    file.write_text(file.read_text().replace('"version": 2', '"version": 3'))
    with pytest.raises(BankError, match="format 3; this version reads 2"):
        BankSnapshot.open(tmp_path / "copy")


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
