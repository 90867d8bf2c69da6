"""Layouts learn from the same questions for the same time."""

import torch

from msa_train.bench import layouts


def test_a_layout_asks_for_documents_that_hold_its_keys():
    generator = torch.Generator().manual_seed(3)
    batch = layouts._bank(generator, 5)
    documents = batch.doc_tokens.view(layouts.DOCUMENTS, -1)
    assert batch.positives.sum(1).tolist() == [1] * 5
    for context, asked in zip(batch.tokens.view(5, -1), batch.positives, strict=True):
        key = context[layouts.ASKED - layouts.KEY : layouts.ASKED]
        holds = (documents.unfold(1, 3, 1) == key).all(2).any(1)
        assert torch.equal(holds, asked)
    assert batch.label_count == 0


def test_layouts_learn_for_the_same_time():
    rows = layouts.measure((("shared", 3), ("published", 3)), budget_s=1.0, test_banks=1)
    assert [row["mode"] for row in rows] == ["shared", "published"]
    for row in rows:
        assert row["questions_trained"] == 3 * row["steps"] > 0 and row["seconds"] >= 1
        assert 0 <= row["recall@1"] <= row["recall@16"] <= 1
