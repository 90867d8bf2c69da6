"""The peers compute what they are said to compute."""

import torch

from msa_train.bench.memory import peers
from tests.bench.memory.tiny_sizes import load
from tests.memory.building import encode_in_memory
from tests.memory.tiny import tiny_documents


@torch.inference_mode()
def test_the_dense_peer_is_the_backbone():
    model, tokenizer, _ = load()
    tokens = torch.randint(tokenizer.vocab_size, (70,), generator=torch.Generator().manual_seed(1))
    view = encode_in_memory(model, tokenizer, tiny_documents()).restricted(
        torch.zeros(len(tiny_documents()), dtype=torch.bool)
    )
    everything = torch.ones(70, dtype=torch.bool)
    given = torch.tensor([0, 70]), torch.arange(70), everything, torch.tensor([0]), view
    last = model.prefill(tokens, *given).last
    torch.testing.assert_close(peers.dense(model, tokens), model.logits(last[-1]))


def test_each_tokens_best_vectors_give_the_best_documents():
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.7, 0.6, 0.2]]).numpy()
    places = torch.tensor([[3, 1, 0], [1, 2, 0]]).numpy()
    assert peers._by_max(scores, places) == [3, 1, 2, 0]
