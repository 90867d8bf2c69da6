"""Builds of several small blocks, by one process or more, that can be stopped where one wants."""

import os
from functools import partial

import torch

from msa_train.memory.bank.build import build_bank
from msa_train.memory.bank.documents import StoredDocument
from msa_train.memory.bank.encode import BlockEncoder, BlockSize, encode_documents
from msa_train.memory.bank.manifest import BankManifest
from msa_train.memory.engine.interleave import Interleave, Request
from msa_train.memory.engine.model_runner import prefill_pieces
from msa_train.memory.ranks.encoding import EncodingRanks
from msa_train.memory.search.in_memory import joined, view_of
from tests.memory.tiny import FINGERPRINT, tiny_documents, tiny_model, tiny_tokenizer

BLOCKS = BlockSize(documents=3)
BUDGET = 60
FILES = ["documents.arrow", "ids.u64", "layer-2.k", "layer-3.v", "layer-3.key", "layer-2.crc"]


def flip(file, place=None):
    """One bit of a file, in its middle or at `place`."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 64
    file.write_bytes(data)


def document(number, text=None):
    text = f"Document {number} tells of {number * number}." if text is None else text
    return StoredDocument(number, text, f"d{number}", "", {"n": number}, added=7)


def build(path, documents=9, **settings):
    given = documents
    if isinstance(documents, int):
        given = [document(number) for number in range(documents)]
    settings = {"dtype": "float32", "token_budget": BUDGET, "size": BLOCKS} | settings
    build_bank(path, tiny_model(), tiny_tokenizer(), given, FINGERPRINT, **settings)


def contents(path):
    """Everything of a bank but when it was created: names, counts and SHA-256 of its files."""
    manifest = BankManifest.load(path)
    return manifest.segments, manifest.next_number, manifest.generation


def tiny_bank(path, documents=None, **settings):
    """A bank of the tiny documents, or of others, in one segment."""
    documents = tiny_documents() if documents is None else documents
    settings = {"fingerprint": FINGERPRINT, "dtype": "float32", "token_budget": 50} | settings
    build_bank(path, tiny_model(), tiny_tokenizer(), documents, **settings)


def encode_in_memory(model, tokenizer, documents, token_budget=None, dtype=torch.float32):
    """A view of documents without a bank on disk; arguments as of encode_documents."""
    batches = list(encode_documents(model, tokenizer, documents, token_budget, dtype))
    held = [document for batch in batches for document in batch.documents]
    return view_of(held, *joined(batches), model.config.router)


def search(view, layer=3):
    """What three contexts find, the second of which asks nothing."""
    gen = torch.Generator().manual_seed(5)
    config = tiny_model().config
    query = torch.randn(12, config.kv_heads * config.head_dim, generator=gen)
    return view.search(layer, query, torch.tensor([0, 4, 4, 12]))


QUESTIONS = ["What is the code of the harbour?", "Who sleeps standing?", "?"]


def answered(view):
    """Final states of some questions, and what was selected for them."""
    prompts = [Interleave(Request(question, view, "memory")).context for question in QUESTIONS]
    prefill = prefill_pieces(tiny_model(), tiny_tokenizer(), view, prompts)
    chosen = [reading.routing.documents for reading in prefill.selected.values()]
    return prefill.last, torch.cat(chosen, 1)


class Stopped(Exception):
    pass


def until(stop, count, act=None):
    """Documents of which number `stop` is never given: `act` is done instead, or Stopped raised."""
    for number in range(count):
        if number == stop:
            if act is None:
                raise Stopped
            act()
        yield document(number)


def tiny_rank(rank, harm=None):
    """What a rank loads. harm: (document, act) done by the rank that is to encode it."""
    encoder = BlockEncoder(tiny_model(), tiny_tokenizer(), BUDGET)
    return Harmed(encoder, *harm) if harm else encoder


class Harmed:
    def __init__(self, encoder, number, act):
        self.encoder, self.number, self.act = encoder, number, act

    def segment(self, block, target, encoded):
        if self.number in [document.number for document in block]:
            self.act()
        return self.encoder.segment(block, target, encoded)


def signalled(signal):
    os.kill(os.getpid(), signal)


def full():
    raise OSError(28, "No space left on device")


def ranks(count, harm=None, timeout=60.0):
    return EncodingRanks(count, partial(tiny_rank, harm=harm), timeout)
