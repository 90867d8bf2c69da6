"""The dense retriever: mean-pooled states of unit length, whatever the batch."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from msa_train.errors import CheckpointError
from msa_train.evaluation.dense import DenseRetriever

WORDS = ["[PAD]", "[UNK]", "harbour", "code", "crane", "water", "rain"]
TEXTS = ["harbour code", "rain", "crane water rain harbour code rain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dense")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    )
    fast.save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=7, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=16)  # fmt: skip
    BertModel(config).save_pretrained(path)
    return path


def test_a_text_is_the_mean_of_its_states_whatever_it_is_batched_with(folder):
    found = DenseRetriever(folder).embed(TEXTS)
    model = BertModel.from_pretrained(folder).eval()
    for row, text in zip(found, TEXTS, strict=True):
        ids = torch.tensor([[WORDS.index(word) for word in text.split()]])
        with torch.no_grad():
            mean = model(ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(row, mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_a_folder_that_is_no_encoder_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="no sentence encoder"):
        DenseRetriever(tmp_path)
