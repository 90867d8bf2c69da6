"""Packed streams: positions, query rows, groups of documents."""

import torch

from msa_train.model.batch import (
    IGNORE,
    PackedDocuments,
    StreamLayout,
    context_positions,
    even_parts,
    positions_within,
    query_rows,
)
from tests.batches import CONTEXTS, RAGGED, random_batch, tiny_config


def test_positions_count_from_each_start_and_leave_room_for_the_memory():
    assert positions_within(torch.tensor([0, 3, 3, 5])).tolist() == [0, 1, 2, 0, 1]
    assert context_positions(5, 3, 16).tolist() == [0, 1, 2, 19, 20]


def test_query_rows_are_counted_by_context():
    asks = torch.tensor([0, 1, 1, 0, 0, 1], dtype=torch.bool)
    rows, cu = query_rows(asks, torch.tensor([0, 3, 4, 6]))
    assert rows.tolist() == [1, 2, 5] and cu.tolist() == [0, 2, 2, 3]


def test_a_layout_says_where_everything_is():
    config = tiny_config()
    batch = random_batch([[5, 4], [1]], [(0, 4), (1, 2)], config)
    layout = StreamLayout.of(batch, 4)
    assert layout.doc_token_count == 10 and layout.chunk_cu.tolist() == [0, 2, 3, 4]
    assert layout.positions[:10].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0]
    assert layout.positions[10:].tolist() == batch.positions.tolist()
    assert layout.query_index.tolist() == batch.is_query.nonzero().squeeze(1).tolist()
    stored = StreamLayout.of(batch, 4, stored=True)
    assert stored.doc_token_count == 0 and stored.doc_cu.tolist() == [0]
    assert torch.equal(stored.chunk_cu, layout.chunk_cu)
    assert torch.equal(stored.positions, batch.positions)


def test_what_is_learned_from_a_batch_is_counted():
    batch = random_batch([[5, 4], []], [(0, 4), (1, 2)], tiny_config(), doc_labels=True)
    assert batch.label_count == int((batch.labels != IGNORE).sum()) + 9
    assert batch.routed_context_count == 1  # an empty bank holds no positive
    half = batch.to("meta")
    assert half.tokens.device.type == half.doc_labels.device.type == "meta"


def test_documents_are_grouped_in_order_by_tokens():
    documents = PackedDocuments(torch.arange(12), torch.tensor([0, 5, 6, 12]))
    groups = documents.groups(6)
    assert [group.tokens.tolist() for group in groups] == [list(range(6)), list(range(6, 12))]
    assert [group.cu.tolist() for group in groups] == [[0, 5, 6], [0, 6]]
    assert [len(group.tokens) for group in documents.groups(2)] == [5, 1, 6]  # longer ones alone
    layout = documents.layout(4)
    assert layout.chunk_cu.tolist() == [0, 2, 3, 5] and len(layout.query_index) == 0
    nothing = PackedDocuments(torch.arange(0), torch.tensor([0]))
    assert nothing.groups(6) == nothing.groups(None) == []
    assert [len(group.tokens) for group in documents.groups(None)] == [12]


def test_parts_are_as_even_as_their_bounds_allow():
    """By trying all bounds: each is the one next to its share of the tokens."""
    gen = torch.Generator().manual_seed(0)
    for _ in range(50):
        lengths = torch.randint(
            1, 40, (int(torch.randint(1, 12, (), generator=gen)),), generator=gen
        )
        cu = torch.tensor([0, *lengths]).cumsum(0)
        for parts in (1, 2, 3, 4):
            bounds = even_parts(cu, parts)
            assert (bounds[0], bounds[-1], len(bounds)) == (0, len(lengths), parts + 1)
            assert sorted(bounds) == bounds
            for number, bound in enumerate(bounds[1:-1], 1):
                aim = int(cu[-1]) * number / parts
                assert abs(int(cu[bound]) - aim) == min(abs(end - aim) for end in cu.tolist())
    assert even_parts(torch.tensor([0]), 3) == [0, 0, 0, 0]


def test_shares_are_the_whole_batch():
    batch = random_batch(RAGGED, CONTEXTS, tiny_config())
    for ranks in (2, 3, 4, 7):
        shares = [batch.share(rank, ranks) for rank in range(ranks)]
        assert torch.equal(torch.cat([each.doc_tokens for each in shares]), batch.doc_tokens)
        asking = [each for each in shares if each.own.contexts.start < each.own.contexts.stop]
        for name in ("tokens", "positions", "labels", "positives", "ctx_bank"):
            joined = torch.cat([getattr(each, name) for each in asking])
            assert torch.equal(joined, getattr(batch, name)), name
        assert sum(each.label_count for each in shares) == batch.label_count
        assert sum(each.routed_context_count for each in shares) == batch.routed_context_count
