"""Encoding: the same states in any batching, numbers in order, nothing held that need not be."""

import pytest
import torch

from msa_train.errors import BankError
from msa_train.memory.encoder import encode_documents, encode_in_memory
from tests.memory.tiny import tiny_documents, tiny_model, tiny_tokenizer


def encode(documents, **settings):
    return list(encode_documents(tiny_model(), tiny_tokenizer(), documents, **settings))


@pytest.mark.parametrize("token_budget", [1, 40, 100])
def test_a_document_does_not_depend_on_its_batch(token_budget):
    (whole,) = encode(tiny_documents(), token_budget=10**6)
    parts = encode(tiny_documents(), token_budget=token_budget)
    assert len(parts) > 1
    assert [d for part in parts for d in part.documents] == tiny_documents()
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    for layer, states in whole.pooled.items():
        for name in ("k", "v", "key"):
            joined = torch.cat([getattr(part.pooled[layer], name) for part in parts])
            torch.testing.assert_close(joined, getattr(states, name), rtol=1e-5, atol=1e-5)


def test_batches_keep_to_the_token_budget():
    parts = encode(tiny_documents(), token_budget=60)
    assert all(int(part.tokens.sum()) <= 60 or len(part.documents) == 1 for part in parts)


def test_documents_are_read_as_they_are_encoded():
    taken = []

    def documents():
        for document in tiny_documents():
            taken.append(document.number)
            yield document

    next(encode_documents(tiny_model(), tiny_tokenizer(), documents(), token_budget=1))
    assert len(taken) == 2  # the one encoded, and the one that did not fit


def test_chunk_counts_follow_from_token_counts():
    (batch,) = encode(tiny_documents())
    size = tiny_model().config.router.chunk_size
    assert torch.equal(batch.chunks, (batch.tokens + size - 1) // size)
    assert int(batch.chunks.sum()) == len(batch.pooled[2].key)


@pytest.mark.parametrize("numbers", [(3, 3), (4, 3)])
def test_numbers_must_ascend(numbers):
    with pytest.raises(BankError, match=f"number 3 follows {numbers[0]}"):
        encode(tiny_documents(numbers))


def test_half_precision_keeps_scores_eight_times_finer_than_bfloat16():
    """Why banks are float16: the gate multiplies differences of scores by 30 and more."""
    (exact,) = encode(tiny_documents())
    error = {}
    for dtype in (torch.float16, torch.bfloat16):
        (stored,) = encode(tiny_documents(), dtype=dtype)
        keys, truth = stored.pooled[2].key.float(), exact.pooled[2].key
        error[dtype] = float((keys @ truth.T - truth @ truth.T).abs().max())
    assert error[torch.float16] < 5e-4
    assert error[torch.bfloat16] > 4 * error[torch.float16]


def test_no_documents_no_memory():
    with pytest.raises(BankError, match="at least one document"):
        encode_in_memory(tiny_model(), tiny_tokenizer(), [])
