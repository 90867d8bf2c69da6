"""Small random batches for tests: ragged documents, several banks, fewer documents than top_k."""

import torch

from msa_train.model.batch import IGNORE, MemoryBatch, context_positions
from msa_train.model.config import ModelConfig, RouterConfig
from msa_train.model.decoder import MSADecoder
from msa_train.model.weights import initial_weight, weight_shapes

RAGGED = [[4, 9, 1, 13, 6, 8], [7], [5, 5]]  # the second and third have fewer than top_k = 3
# Routers as a pretrained backbone has them: a shape of their own, one query vector per context, not
# in every layer, and some that only vote.
OWN_ROUTER = {
    "layers": "0,2", "reads": "2", "key_heads": 3, "head_dim": 6, "query_reduce": "pooled",
}  # fmt: skip
VOTING_ROUTER = OWN_ROUTER | {"reads": "none"}
CONTEXTS = [(0, 9), (1, 6), (0, 4), (2, 11), (0, 1)]


def tiny_config(gate: str = "threshold", depth: int = 4, **router) -> ModelConfig:
    settings = {"top_k": 3, "chunk_size": 4, "gate": gate, "gate_start": 5.0} | router
    return ModelConfig(
        layers=depth, hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=48, vocab_size=64,
        router=RouterConfig(**settings),
    )  # fmt: skip


def decoder_of(config: ModelConfig, seed: int = 0) -> MSADecoder:
    """A serving module fresh from its seed."""
    names = weight_shapes(config)
    return MSADecoder(config).load_published({n: initial_weight(n, config, seed) for n in names})


def random_batch(
    banks: list[list[int]],
    contexts: list[tuple[int, int]],
    config: ModelConfig,
    seed: int = 0,
    head: int = 3,
    doc_labels: bool = False,
) -> MemoryBatch:
    """`banks`: document lengths of each; `contexts`: (bank, length after the head) of each.

    The first half of a context after its head asks; the rest is labelled.
    """
    gen = torch.Generator().manual_seed(seed)
    doc_lengths = [length for bank in banks for length in bank]
    doc_cu = torch.tensor([0, *doc_lengths]).cumsum(0)
    bank_cu = torch.tensor([0, *map(len, banks)]).cumsum(0)
    lengths = [head + length for _, length in contexts]
    ctx_cu = torch.tensor([0, *lengths]).cumsum(0)
    tokens = torch.randint(0, config.vocab_size, (int(ctx_cu[-1]),), generator=gen)
    is_query = torch.zeros(len(tokens), dtype=torch.bool)
    labels = torch.full((len(tokens),), IGNORE)
    positives = torch.zeros(len(contexts), len(doc_lengths), dtype=torch.bool)
    for i, (bank, length) in enumerate(contexts):
        start, end = int(ctx_cu[i]), int(ctx_cu[i + 1])
        middle = start + head + (length + 1) // 2
        is_query[start + head : middle] = True
        labels[middle - 1 : end - 1] = tokens[middle:end]
        if len(banks[bank]):
            chosen = torch.randint(int(bank_cu[bank]), int(bank_cu[bank + 1]), (2,), generator=gen)
            positives[i, chosen] = True
    doc_tokens = torch.randint(0, config.vocab_size, (int(doc_cu[-1]),), generator=gen)
    return MemoryBatch(
        doc_tokens=doc_tokens,
        doc_cu=doc_cu,
        doc_numbers=torch.arange(len(doc_lengths)),
        doc_ids=torch.arange(len(doc_lengths)),
        bank_cu=bank_cu,
        tokens=tokens,
        ctx_cu=ctx_cu,
        ctx_bank=torch.tensor([bank for bank, _ in contexts]),
        positions=torch.cat([context_positions(n, head, config.router.top_k) for n in lengths]),
        is_query=is_query,
        memory_from=torch.full((len(contexts),), head),
        labels=labels,
        positives=positives,
        masked=torch.zeros_like(positives),
        doc_labels=doc_tokens.roll(-1) if doc_labels else None,
    )
