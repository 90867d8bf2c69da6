"""A tiny random model with a real tokenizer, and documents of every awkward length."""

import functools
import json
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from data_pipeline.schema import Document
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.sentencepiece import train_sentencepiece
from msa_train.interop import export
from msa_train.interop.published_config import to_published
from msa_train.model.decoder import MSADecoder
from msa_train.model.weights import initial_weight, weight_shapes
from tests.batches import tiny_config

TEXTS = (
    "The code of the harbour is 4711.",
    "",
    "Cranes sleep standing. " * 9,
    "x",
    "Naïve 東京 café",
    "The code of the lighthouse is 1147, said the keeper of the lighthouse.",
    "Rain.",
)
FINGERPRINT = {"model": "a" * 64, "tokenizer": "b" * 64}


def tiny_documents(numbers=(2, 3, 17, 40, 41, 1000, 123456)) -> list[Document]:
    return [
        Document(number, text, id=f"d{number}", title=text[:4])
        for number, text in zip(numbers, TEXTS, strict=False)
    ]


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    return train_sentencepiece([text for text in TEXTS if text] * 3, vocab_size=320)


@functools.cache
def tiny_model(gate: str = "threshold", seed: int = 0, **router) -> MSADecoder:
    # With tied embeddings a random model repeats its last token whatever it reads; with a blunt
    # gate its answers hardly depend on the memory.
    config = replace(
        tiny_config(gate, **{"gate_start": 10.0, "threshold_start": 0.0} | router),
        vocab_size=tiny_tokenizer().vocab_size,
        tie_embeddings=False,
    )
    model = MSADecoder(config)
    model.load_state_dict({n: initial_weight(n, config, seed) for n in weight_shapes(config)})
    return model.eval().requires_grad_(False)


def tiny_export(folder: Path, **router) -> Path:
    """What `msa export` would write, of the tiny random model."""
    folder.mkdir(parents=True)
    model = tiny_model(**router)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / export.WEIGHTS, metadata={"format": "pt"})
    (folder / export.CONFIG).write_text(json.dumps(to_published(model.config)))
    tiny_tokenizer().save(folder)
    export.seal(folder)
    return folder
