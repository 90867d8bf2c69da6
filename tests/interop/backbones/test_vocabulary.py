"""Control tokens that a vocabulary lacks: spelled, or rows of their own."""

import pytest
import torch

from data_pipeline.protocol import REF_END
from data_pipeline.tokenizer.huggingface import HuggingFaceTokenizer
from msa_train.errors import CheckpointError, ConfigError
from msa_train.interop.backbones.vocabulary import Vocabulary
from tests.data_pipeline.tokenizer.test_huggingface import SPELLED, trained

SIZE = SPELLED.vocab_size


def test_spelling_needs_no_rows():
    vocabulary = Vocabulary.of(SPELLED, SIZE, "spell")
    weight = torch.randn(SIZE, 3)
    assert vocabulary.with_rows(weight) is weight and vocabulary.rows == SIZE
    count = len(SPELLED.control_ids(REF_END))
    assert vocabulary.described() == {REF_END: f"spelled in {count} ordinary tokens"}


@pytest.mark.parametrize("rows", [SIZE, SIZE + 3, SIZE // 4 * 4 + 128])
def test_an_added_token_begins_as_the_mean_of_its_pieces(rows):
    vocabulary = Vocabulary.of(SPELLED, rows, "add")
    weight = torch.randn(rows, 3)
    grown = vocabulary.with_rows(weight)
    assert len(grown) == vocabulary.rows >= SIZE + 1
    kept = [i for i in range(rows) if i != SIZE]
    assert torch.equal(grown[kept], weight[kept])
    mean = weight[SPELLED.encode_text(REF_END)].mean(0)
    torch.testing.assert_close(grown[SIZE], mean)
    spare = grown[max(rows, SIZE + 1) :]
    torch.testing.assert_close(spare, weight.mean(0).expand_as(spare))
    assert f"added as token {SIZE}, its row the mean of" in vocabulary.described()[REF_END]


def test_ranks_that_divided_the_rows_still_do():
    tokenizer = HuggingFaceTokenizer(trained())
    for rows in (448, 512, SIZE + SIZE % 2):
        assert Vocabulary.of(SPELLED, max(rows, SIZE), "add").rows % 2 == max(rows, SIZE) % 2
    assert Vocabulary.of(tokenizer, 448, "add").rows == 448  # nothing is lacking


def test_what_does_not_fit_is_refused():
    with pytest.raises(CheckpointError, match=f"has {SIZE} tokens, the embedding 64 rows"):
        Vocabulary.of(SPELLED, 64, "spell")
    with pytest.raises(ConfigError, match="--protocol-tokens is 'drop'"):
        Vocabulary.of(SPELLED, SIZE, "drop")
