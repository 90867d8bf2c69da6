"""A tiny untrained model, a tokenizer, and a way to put words into the model's mouth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline import protocol
from data_pipeline.dataset import Passage, Question, write_dataset
from data_pipeline.schema import Query
from data_pipeline.settings import DataConfig
from data_pipeline.sources.base import SourceInputs
from data_pipeline.sources.dataset_config import DatasetConfig
from data_pipeline.sources.niah import NiahConfig, NiahSource, needle_texts
from data_pipeline.tokenizer.sentencepiece import train_sentencepiece
from msa_train.config import Config, EvaluationConfig
from msa_train.evaluation.asking import Asker
from msa_train.evaluation.encoded_bank import EncodedBank
from msa_train.evaluation.report import machine, relative_losses, summarise
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
VERBS = ("parse", "join", "split", "encode", "decode", "open", "close", "read", "write", "seek")


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


@pytest.fixture(scope="session")
def held_out_needles(config, tokenizer):
    inputs = SourceInputs("niah", tokenizer, config.data.numbers, Path("unused"))
    return NiahSource.held_out_bank(config.data.niah, inputs, config.evaluation)


@pytest.fixture(scope="session")
def needles(held_out_needles):
    return held_out_needles.bank


@pytest.fixture(scope="session")
def memory(model, tokenizer, needles):
    return EncodedBank.encode(model, tokenizer, needles.documents)


@pytest.fixture
def asker(model, tokenizer):
    return Asker(model, tokenizer, 4)


@pytest.fixture(scope="session")
def verbs(tmp_path_factory):
    """A dataset of ten questions in each split and thirty passages: every text stands thrice."""
    folder = tmp_path_factory.mktemp("sets") / "verbs"
    passages = [
        Passage(f"{w}{i}", w, f"How to {w} is told here, at length.")
        for i in range(3)
        for w in VERBS
    ]
    questions = [
        (split, Question(f"{split}-{w}", f"How do I {w}?", (f"to {w}",), (f"{w}0",)))
        for split in ("train", "dev")
        for w in VERBS
    ]
    write_dataset(folder, passages, questions)
    return DatasetConfig(str(folder), held_out_split="dev", document_tokens=128)


@pytest.fixture
def oracle(monkeypatch):
    """The model's greedy choice becomes what a perfect model writes, for the given queries."""

    def install(queries: list[Query], tokenizer) -> None:
        by_question = {query.question: query for query in queries}

        class Oracle(scheduler.Sequence):
            def prefilled(self, chosen):
                self.script = _script(self._interleave.context, by_question, tokenizer)
                return super().prefilled(chosen)

            def append(self, _token, room):
                return super().append(self.script.pop(0) if self.script else 0, room)

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


LENGTHS = (16384, 1048576)


def columns(share, n=200):
    rng = np.random.default_rng(0)

    def column():
        return (rng.random(n) < share).astype(float)

    names = [
        f"{prefix}recall@{k}" for k in (1, 5, 16) for prefix in ("", "layer2/", "layer3/", "bm25_")
    ]
    return {name: column() for name in (*names, "answer_memory", "answer_text", "ids_f1")}


@pytest.fixture
def report():
    short, long = columns(0.95), columns(0.8)
    sections = {
        str(length): summarise(chosen, 200, 0) | {"questions": 200, "documents": length // 62}
        for length, chosen in zip(LENGTHS, (short, long), strict=True)
    }
    return {
        "niah": {"single": sections, "multi_value": sections},
        "niah_loss": dict.fromkeys(("single", "multi_value"), relative_losses(short, long, 200, 0)),
        "niah_controls": {"single": {"no_memory": {"answer_memory": 0.004}}},
        "pydocs": summarise(columns(0.7), 200, 0) | {"questions": 200, "documents": 5000},
        "machine": machine(),
    }
