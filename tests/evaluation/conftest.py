"""A tiny untrained model, a tokenizer, and a way to put words into the model's mouth."""

from dataclasses import replace

import pytest
import torch

from data_pipeline import protocol
from data_pipeline.schema import Query
from data_pipeline.settings import DataConfig
from data_pipeline.sources.needles import NiahConfig
from data_pipeline.sources.niah import needle_texts
from data_pipeline.tokenizer_sentencepiece import train_sentencepiece
from msa_train.config import Config, EvaluationConfig
from msa_train.memory.engine import scheduler
from msa_train.model.config import ModelConfig, RouterConfig
from msa_train.model.decoder import MSADecoder

SETTINGS = EvaluationConfig(
    memory_tokens=(2048, 8192),
    questions=4,
    text_questions=3,
    pydocs_questions=5,
    resamples=50,
    batch_contexts=4,
)


@pytest.fixture(scope="session")
def tokenizer():
    import numpy as np

    config = NiahConfig(adjectives=16, nouns=32, values=32)
    return train_sentencepiece(list(needle_texts(config, np.random.default_rng(0), 600)), 768)


@pytest.fixture(scope="session")
def model(tokenizer):
    torch.manual_seed(0)
    config = ModelConfig(
        layers=2, hidden=32, heads=2, kv_heads=1, head_dim=16, ffn=32,
        vocab_size=tokenizer.vocab_size, router=RouterConfig(top_k=16),
    )  # fmt: skip
    return MSADecoder(config).eval()


@pytest.fixture(scope="session")
def config(model):
    niah = NiahConfig(adjectives=16, nouns=32, values=32, document_tokens=128)
    return Config(model=model.config, data=replace(DataConfig(), niah=niah), evaluation=SETTINGS)


@pytest.fixture
def oracle(monkeypatch):
    """The model's greedy choice becomes what a perfect model writes, for the given queries."""

    def install(queries: list[Query], tokenizer) -> None:
        by_question = {query.question: query for query in queries}

        class Oracle(scheduler.Sequence):
            def prefilled(self, chosen):
                self.script = _script(self._interleave.context, by_question, tokenizer)
                return super().prefilled(chosen)

            def choose(self, likeliest, logits):
                return self.script.pop(0) if self.script else 0

        monkeypatch.setattr(scheduler, "Sequence", Oracle)

    return install


def _script(pieces, by_question, tokenizer):
    text = "".join(piece.text for piece in pieces)
    query = by_question[text.split(protocol.ASK)[1].split(protocol.RETRIEVE)[0]]
    answer = protocol.answer_pieces(query.answers[0])
    if protocol.USER_QUESTION in text:
        written = answer
    elif protocol.REF_END in text:  # texts were read
        written = [*protocol.end_of_retrieve_pieces(), *answer]
        return _tokens(written[:1], tokenizer) + _tokens(written[1:], tokenizer)
    else:
        written = protocol.retrieval_pieces(query.positives)
    return _tokens(written, tokenizer)


def _tokens(pieces, tokenizer):
    return tokenizer.encode_pieces(pieces).tokens
