"""Encoding: the same states in any batching, numbers in order, nothing held that need not be."""

import pytest
import torch

from msa_train.errors import BankError
from msa_train.memory.bank.build import bank_form
from msa_train.memory.bank.encode import BlockEncoder, BlockSize, blocks_of, encode_documents
from msa_train.memory.bank.segment import Target
from tests.memory.building import BLOCKS, document
from tests.memory.tiny import FINGERPRINT, tiny_documents, tiny_model, tiny_tokenizer


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


@pytest.mark.parametrize("threads", [1, 2])
def test_documents_are_read_as_they_are_encoded(threads):
    taken = []

    def documents():
        for each in tiny_documents():
            taken.append(each.number)
            yield each

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        batches = encode_documents(tiny_model(), tiny_tokenizer(), documents(), token_budget=1)
        next(batches)
        assert len(taken) <= 2 * threads  # the ones encoded ahead, and one that did not fit
        batches.close()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_threads_keep_order_and_states():
    before, parts = torch.get_num_threads(), {}
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            parts[threads] = encode(tiny_documents(), token_budget=40)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(parts[1], parts[3], strict=True):
        assert one.documents == other.documents
        torch.testing.assert_close(one.pooled[3].v, other.pooled[3].v)


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


def test_blocks_end_where_the_documents_say():
    given = [document(n, "x" * length) for n, length in enumerate([5, 5, 5, 1, 1, 1, 20, 1])]
    blocks = [[d.number for d in block] for block in blocks_of(given, BlockSize(3, 10))]
    assert blocks == [[0, 1], [2, 3, 4], [5], [6], [7]]
    assert list(blocks_of([], BLOCKS)) == []


def test_an_encoder_makes_a_sealed_segment_of_every_block(tmp_path):
    model, batches = tiny_model(), []
    target = Target(tmp_path, bank_form(model.config, FINGERPRINT, "float32"), 4)
    encoder = BlockEncoder(model, tiny_tokenizer(), 40)
    blocks = [tiny_documents()[:2], tiny_documents()[2:]]
    entries = list(encoder.segments(blocks, target, None, lambda *done: batches.append(done)))
    assert [(e.name, e.documents) for e in entries] == [
        ("000004-000000000002", 2), ("000004-000000000017", 5),
    ]  # fmt: skip
    assert sum(documents for documents, _ in batches) == 7 and len(batches) > 2
    assert sum(tokens for _, tokens in batches) == sum(entry.tokens for entry in entries)
    assert sorted(path.name for path in tmp_path.iterdir()) == [entry.name for entry in entries]
