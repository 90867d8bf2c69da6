"""Padded rows and packed tokens."""

import pytest
import torch

from msa_train.errors import ConfigError
from msa_train.interop.huggingface.rows import PackedRows

IDS = torch.tensor([[0, 0, 5], [6, 7, 8]])
MASK = torch.tensor([[0, 0, 1], [1, 1, 1]])


def test_rows_are_packed_and_padded_again():
    rows = PackedRows.of(IDS, MASK, torch.tensor([[0, 1, 2]]))
    assert rows.tokens.tolist() == [5, 6, 7, 8] and rows.counts == [1, 3]
    assert rows.positions.tolist() == [2, 0, 1, 2] and rows.cu().tolist() == [0, 1, 4]
    states = torch.arange(8.0).view(4, 2).requires_grad_()
    padded = rows.padded(states)
    assert padded[0].tolist() == [[0, 0], [0, 0], [0, 1]] and padded[1, 0].tolist() == [2, 3]
    padded.sum().backward()
    assert torch.equal(states.grad, torch.ones(4, 2))


def test_a_mask_may_be_of_all_tokens_so_far():
    rows = PackedRows.of(IDS[:, :1], torch.tensor([[0, 1, 1], [1, 1, 0]]))
    assert rows.counts == [1, 0] and rows.tokens.tolist() == [0]
    with pytest.raises(ConfigError, match="row 1 of input_ids has no token"):
        rows.cu()


@pytest.mark.parametrize(
    ("ids", "mask", "words"),
    [
        (IDS[0], None, r"input_ids have shape \[3\]"),
        (IDS, MASK[:1], r"attention_mask has shape \[1, 3\]"),
        (IDS, MASK[:, :2], r"attention_mask has shape \[2, 2\]"),
        (IDS, MASK[None], r"attention_mask has shape \[1, 2, 3\]"),
    ],
)
def test_other_shapes_are_refused(ids, mask, words):
    with pytest.raises(ConfigError, match=words):
        PackedRows.of(ids, mask)
