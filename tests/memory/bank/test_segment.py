"""A segment: what was encoded is what is read, or the segment is refused."""

import os
import shutil

import pytest
import torch

from msa_train.errors import BankError
from msa_train.memory.bank.build import build_bank
from msa_train.memory.bank.encode import encode_documents
from msa_train.memory.bank.segment import STATES
from msa_train.memory.bank.snapshot import BankSnapshot
from tests.memory.building import FILES, tiny_bank
from tests.memory.tiny import FINGERPRINT, tiny_documents, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_bank_reads_back_exactly_what_was_encoded(tmp_path, dtype):
    tiny_bank(tmp_path / "bank", dtype=dtype)
    bank = BankSnapshot.open(tmp_path / "bank", FINGERPRINT)
    kind = getattr(torch, dtype)
    (encoded,) = encode_documents(
        tiny_model(), tiny_tokenizer(), tiny_documents(), 10**6, dtype=kind
    )
    for layer, states in encoded.pooled.items():
        for name in STATES:
            stored = getattr(bank.segments[0].pooled[layer], name)
            assert stored.dtype == kind
            torch.testing.assert_close(stored, getattr(states, name), rtol=1e-2, atol=1e-5)
    assert torch.equal(bank.chunk_cu.diff(), encoded.chunks)
    assert bank.segments[0].documents.tokens.tolist() == encoded.tokens.tolist()


def copied(bank, tmp_path):
    """The folder of the one segment of a copy."""
    copy = shutil.copytree(bank.path, tmp_path / "copy")
    return copy / "segments" / bank.segments[0].entry.name


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_by_name(tiny, tmp_path, name):
    file = copied(tiny, tmp_path) / name
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(BankError, match=f"{name} has .* bytes"):
        BankSnapshot.open(tmp_path / "copy", FINGERPRINT)
    file.unlink()
    with pytest.raises(BankError, match=f"{name} is missing"):
        BankSnapshot.open(tmp_path / "copy", FINGERPRINT)


def test_states_that_overflow_are_refused(tmp_path):
    weights = {name: w.clone() for name, w in tiny_model().state_dict().items()}
    weights["model.layers.2.self_attn.v_proj.weight"] *= 1e6
    model = type(tiny_model())(tiny_model().config)
    model.load_state_dict(weights)
    with pytest.raises(BankError, match="v of layer 2 is not finite as float16"):
        build_bank(tmp_path / "bank", model, tiny_tokenizer(), tiny_documents(), FINGERPRINT)
    assert not list(tmp_path.iterdir())


def test_changed_states_are_named_when_they_are_read(tiny, tmp_path):
    file = copied(tiny, tmp_path) / "layer-3.v"
    data = bytearray(file.read_bytes())
    data[-1] ^= 16  # of the last document
    file.write_bytes(data)
    (segment,) = BankSnapshot.open(tmp_path / "copy").segments
    segment.check_states(3, torch.tensor([0, 5]))
    segment.check_states(2, torch.tensor([6]))
    with pytest.raises(BankError, match="K or V of document 123456 in layer 3 was changed"):
        segment.check_states(3, torch.tensor([5, 6]))


def test_ids_are_found_unread(tiny):
    (segment,) = tiny.segments
    assert segment.rows_of(["d17"]) == [2] and segment.rows_of(["d18"]) == []
    assert segment.rows_of(["d1000", "nobody", "d2"]) == [5, 0]
