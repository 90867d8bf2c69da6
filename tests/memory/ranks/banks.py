"""Small banks of drawn states: ties, removed documents, several segments."""

import torch
import torch.nn.functional as F

from data_pipeline.schema import Document
from msa_train.memory.bank.build import bank_form
from msa_train.memory.bank.segment import EncodedBatch
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.writer import BankWriter, create_bank
from msa_train.model.attention import Pooled
from tests.memory.tiny import FINGERPRINT, tiny_model

CONFIG = tiny_model().config
WIDTH = CONFIG.kv_heads * CONFIG.head_dim


def drawn(first, counts, gen, twin=None):
    """Documents first.. with `counts` chunks of random states; twin: a seed of one key for all."""
    total = sum(counts)
    pooled = {}
    for layer in CONFIG.router_layers:
        k, v = torch.randn(2, total, CONFIG.kv_heads, CONFIG.head_dim, generator=gen)
        key = torch.randn(total, CONFIG.kv_heads, CONFIG.head_dim, generator=gen)
        if twin is not None:
            key[:] = torch.randn(1, *key.shape[1:], generator=torch.Generator().manual_seed(twin))
        key = F.normalize(key, dim=2).flatten(1)
        pooled[layer] = Pooled(*(x.half() for x in (k, v, key)))
    numbers = range(first, first + len(counts))
    documents = [Document(number, f"text {number}", id=f"d{number}") for number in numbers]
    chunks = torch.tensor(counts)
    return EncodedBatch(documents, 4 * chunks, chunks, pooled)


def write(path, segments, removed=(), twin=None, seed=0):
    """A bank of segments, each a list of chunk counts; returns it opened."""
    gen = torch.Generator().manual_seed(seed)
    create_bank(path, bank_form(CONFIG, FINGERPRINT, "float16"))
    for counts in segments:
        add(path, counts, twin, gen)
    if removed:
        with BankWriter(path, "remove") as writer:
            writer.remove(removed)
    return BankSnapshot.open(path)


def add(path, counts, twin=None, gen=None):
    gen = gen or torch.Generator().manual_seed(99)
    with BankWriter(path, "add") as writer:
        writer.add([drawn(writer.manifest.next_number, counts, gen, twin)])


def compact(path):
    with BankWriter(path, "compact") as writer:
        writer.compact()
    return BankSnapshot.open(path)


def questions(lengths=(4, 0, 7, 1), seed=3):
    """query [Nq, V], query_cu; one context asks nothing."""
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(sum(lengths), WIDTH, generator=gen), torch.tensor([0, *lengths]).cumsum(0)
