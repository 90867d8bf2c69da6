"""The training benchmark measures every layout of the same questions."""

import pytest
import torch

from msa_train.bench import layouts, train


@pytest.mark.parametrize("mode", ["plain", "gradient_cache", "published", "dense"])
def test_every_mode_asks_the_same_of_the_same_memory(mode):
    batches = list(train._batches(mode, 1024, 3))
    contexts = sum(len(batch.ctx_bank) for batch in batches)
    assert contexts == 3
    assert sum(batch.label_count for batch in batches) == 3 * (train.CONTEXT - train.ASKED)
    memory = [len(batch.doc_tokens) for batch in batches]
    if mode == "dense":
        assert memory == [0] * 3 and all(len(b.tokens) == 1024 + train.CONTEXT for b in batches)
    else:
        assert memory == [1024] * len(batches)
        assert sum(batch.routed_context_count for batch in batches) == 3


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


def test_rows_are_measured_and_nothing_else_is_printed(capfd):
    rows = train.measure((("gradient_cache", 8192, 2), ("dense", 256, 1)), least_s=0.1)
    assert [row["mode"] for row in rows] == ["gradient_cache", "dense"]
    for row in rows:
        assert row["step_ms"] > 0 and row["peak_mb"] > 100 and row["steps"] >= 1
        expected = row["memory_tokens"] / row["step_ms"] * 1e3
        assert row["tokens_per_s"] == pytest.approx(expected, rel=0.01)
    assert capfd.readouterr().out == ""
