"""Documents are compared with their checksums once, the changed ones are told from the others."""

import zlib
from itertools import pairwise

import numpy as np
import pytest
import torch

from msa_train.memory.bank.state_checks import StateChecks, raw_bytes, rows_crc
from msa_train.model.attention import Pooled

CU = torch.tensor([0, 2, 2, 3, 7])  # one without chunks
SHAPES = [(7, 2, 3), (7, 0, 3)]  # of a layer whose pooled states nobody reads


def drawn(shape):
    k, v = (torch.randn(shape).half() for _ in "kv")
    return Pooled(k, v, torch.zeros(7, 6).half())


def one_by_one(states):
    return np.array(
        [
            zlib.crc32(b"".join(x[a:b].numpy().tobytes() for x in (states.k, states.v)))
            for a, b in pairwise(CU.tolist())
        ]
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_a_checksum_is_of_the_bytes_of_k_and_then_of_v(shape):
    states = drawn(shape)
    bounds = CU.numpy() * states.k[:1].nbytes
    assert (rows_crc(raw_bytes(states.k), raw_bytes(states.v), bounds) == one_by_one(states)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_what_was_not_changed_passes(shape):
    states = drawn(shape)
    checks = StateChecks(states, CU, one_by_one(states))
    assert checks.changed(torch.tensor([0, 1, 3])) is None
    assert not checks.all_changed().any()


@pytest.mark.parametrize(("part", "chunk", "document"), [("k", 1, 0), ("v", 2, 2), ("v", 6, 3)])
def test_the_first_changed_document_is_told(part, chunk, document):
    states = drawn(SHAPES[0])
    checks = StateChecks(states, CU, one_by_one(states))
    getattr(states, part)[chunk, 1, 2] += 1
    others = torch.tensor([row for row in range(4) if row != document])
    assert checks.changed(others) is None
    assert checks.changed(torch.arange(4)) == document == checks.changed(torch.arange(4))
    assert checks.all_changed().tolist() == [row == document for row in range(4)]


def test_a_known_document_is_not_compared_again():
    states = drawn(SHAPES[0])
    checks = StateChecks(states, CU, one_by_one(states))
    assert checks.changed(torch.tensor([2])) is None
    states.k.zero_()
    assert checks.changed(torch.tensor([2])) is None
    assert checks.changed(torch.tensor([0, 2])) == 0
