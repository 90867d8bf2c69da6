"""Banks of any size in seconds: random states with the statistics of encoded ones, and needles.

A hundred million tokens take the quickstart model half an hour to encode. Here documents of one
chunk get states drawn with mean and covariance of documents that were encoded; needles, spread
evenly among them, are encoded for real, and questions ask for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.files import replace_file
from data_pipeline.schema import Document
from data_pipeline.sources.niah import NiahConfig, NiahSource
from data_pipeline.tokenizer import Tokenizer
from msa_train.memory.bank.build import bank_form
from msa_train.memory.bank.documents import StoredDocument
from msa_train.memory.bank.encode import encode_documents
from msa_train.memory.bank.segment import STATES, EncodedBatch
from msa_train.memory.bank.writer import BankWriter, create_bank
from msa_train.memory.search.in_memory import joined
from msa_train.model.attention import Pooled
from msa_train.model.config import ModelConfig
from msa_train.model.decoder import MSADecoder

DTYPE = torch.float16  # what banks keep unless asked otherwise
_BLOCK = 1 << 14  # documents generated at once
_WIDER = 16  # tokens that a longer document number may add around a text
QUESTIONS = "questions.json"  # beside a generated bank


@dataclass(frozen=True)
class Planted:
    """A needle in a bank: what to ask, the number of its document, and the answer."""

    question: str
    number: int
    answer: str


def needles(
    tokenizer: Tokenizer, count: int, seed: int, tokens: int
) -> list[tuple[Document, str, str]]:
    """(document of one chunk, question, answer), each with a key of its own."""
    config = NiahConfig(tasks={"single": 1.0}, document_tokens=tokens)
    source = NiahSource(config, tokenizer)
    bank = source.bank(np.random.default_rng(seed), count, document_tokens=tokens - _WIDER)
    by_number = {document.number: document for document in bank.documents}
    return [(by_number[q.positives[0]], q.question, q.answers[0]) for q in bank.queries]


def generate_bank(
    model: MSADecoder, tokenizer: Tokenizer, fingerprint: dict[str, str], path: Path,
    tokens: int, planted: int, sample: int, seed: int = 0,
) -> None:  # fmt: skip
    """A bank of about `tokens` memory tokens at `path`, and its questions beside it.

    planted: needles that are asked for. sample: further needles, which are encoded for their
    mean and covariance.
    """
    chunk = model.config.router.chunk_size
    documents = max(tokens // chunk, planted)
    drawn = needles(tokenizer, planted + sample, seed, chunk)
    asked = [
        (replace(document, number=(2 * i + 1) * documents // (2 * planted)), question, answer)
        for i, (document, question, answer) in enumerate(drawn[:planted])
    ]
    others = [replace(document, number=i) for i, (document, _, _) in enumerate(drawn[planted:])]
    likeness = Likeness.of(model, tokenizer, others)
    batches = encode_documents(model, tokenizer, [each[0] for each in asked], dtype=DTYPE)
    encoded = list(batches)
    create_bank(path, bank_form(model.config, fingerprint, str(DTYPE).removeprefix("torch.")))
    with BankWriter(path, "generate") as writer:
        writer.add(_batches(likeness, documents, encoded, model.config, seed))
    found = [Planted(question, document.number, answer) for document, question, answer in asked]
    replace_file(questions_of(path), json.dumps([asdict(each) for each in found]))


def questions_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-{QUESTIONS}")


def read_questions(path: Path) -> list[Planted]:
    return [Planted(**each) for each in json.loads(questions_of(path).read_text())]


@dataclass(frozen=True)
class Likeness:
    """Mean [F] and factor [F, F] of the covariance of encoded states, by layer and kind."""

    moments: dict[tuple[int, str], tuple[Tensor, Tensor]]
    head_dim: int
    key_head_dim: int

    @classmethod
    def of(cls, model: MSADecoder, tokenizer: Tokenizer, documents: list[Document]) -> Likeness:
        pooled, _ = joined(list(encode_documents(model, tokenizer, documents)))
        moments = {}
        for layer, states in pooled.items():
            for kind in STATES:
                rows = getattr(states, kind).flatten(1).double()
                width = rows.shape[1]
                small = 1e-6 * rows.var() * torch.eye(width, dtype=rows.dtype)
                factor = torch.linalg.cholesky(rows.T.cov() + small)
                moments[layer, kind] = rows.mean(0).float(), factor.float()
        return cls(moments, model.config.head_dim, model.config.router_head_dim)

    def draw(self, layer: int, count: int) -> Pooled:
        """[count] chunks; each head of a router key has length 1, as encoded ones have."""
        found = {}
        for kind in STATES:
            mean, factor = self.moments[layer, kind]
            found[kind] = torch.addmm(mean, torch.randn(count, len(mean)), factor.T)
        k, v = (found[kind].unflatten(1, (-1, self.head_dim)).to(DTYPE) for kind in ("k", "v"))
        key = F.normalize(found["key"].unflatten(1, (-1, self.key_head_dim)), dim=-1)
        return Pooled(k, v, key.flatten(1).to(DTYPE))


def _batches(
    likeness: Likeness, documents: int, planted: list[EncodedBatch], config: ModelConfig, seed: int
) -> Iterator[EncodedBatch]:
    torch.manual_seed(seed)
    held = {document.number: document for batch in planted for document in batch.documents}
    states, chunk_cu = joined(planted)
    assert int(chunk_cu[-1]) == len(held), "a needle of more than one chunk"
    numbers = torch.tensor(sorted(held))
    chunk = config.router.chunk_size
    for start in range(0, documents, _BLOCK):
        end = min(start + _BLOCK, documents)
        own = ((numbers >= start) & (numbers < end)).nonzero().squeeze(1)
        pooled = {}
        for layer in config.router_layers:
            pooled[layer] = likeness.draw(layer, end - start)
            for kind in STATES:
                rows = getattr(states[layer], kind)[own]
                getattr(pooled[layer], kind)[numbers[own] - start] = rows
        rows = [_document(number, held) for number in range(start, end)]
        lengths = torch.full((end - start,), chunk)
        yield EncodedBatch(rows, lengths, torch.ones_like(lengths), pooled)


def _document(number: int, held: dict[int, Document]) -> StoredDocument:
    text = held[number].text if number in held else "generated states: no text"
    return StoredDocument(number, text, id=str(number))
