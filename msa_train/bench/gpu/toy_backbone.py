"""What part `backbone` is tried on at toy size: a small random model, and a few documents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from data_pipeline import files
from data_pipeline.dataset import Passage, Question, write_dataset
from data_pipeline.sources.pydocs import Entry, PydocsConfig, PydocsSource, training_texts
from data_pipeline.tokenizer.load import load_tokenizer
from data_pipeline.tokenizer.sentencepiece import train_sentencepiece
from msa_train.interop.backbones.weights_file import write_weights
from msa_train.interop.export import CONFIG, WEIGHTS, seal
from msa_train.interop.published_config import to_published
from msa_train.model.config import ModelConfig, RouterConfig
from msa_train.model.weights import initial_weight, weight_shapes

_TEXTS, _VOCABULARY = 400, 1024
_DOCUMENTS, _HELD_OUT = 120, 8  # every eighth document's questions are held out


def toy_backbone(folder: Path) -> Path:
    """An export as `make backbone` makes one, in `folder`, which is made."""
    tokenizer = train_sentencepiece(training_texts(PydocsConfig())[:_TEXTS], _VOCABULARY)
    router = RouterConfig(
        layers="1", reads="none", key_heads=2, head_dim=16, query_reduce="pooled", gate="none",
    )  # fmt: skip
    model = ModelConfig(
        layers=4, hidden=32, heads=2, kv_heads=2, head_dim=16, ffn=64, answers="chat",
        vocab_size=tokenizer.vocab_size, router=router,
    )  # fmt: skip
    folder.mkdir()
    shapes = {name: (torch.float32, shape) for name, shape in weight_shapes(model).items()}
    write_weights(folder / WEIGHTS, shapes, ((n, initial_weight(n, model, 0)) for n in shapes))
    files.replace_file(folder / CONFIG, json.dumps(to_published(model)))
    tokenizer.save(folder)
    seal(folder)
    return folder


def toy_corpus(backbone: Path, folder: Path) -> Path:
    """A dataset folder, which is made, of some of Python's documentation, as the backbone's
    tokenizer cuts it."""
    entries = PydocsSource(PydocsConfig(), load_tokenizer(backbone)).entries
    chosen = [entry for entry in entries if entry.questions][:_DOCUMENTS]
    passages = (Passage(entry.name, entry.name, entry.text) for entry in chosen)
    write_dataset(folder, passages, (("held_out", each) for each in _questions(chosen)))
    return folder


def _questions(entries: Sequence[Entry]) -> list[Question]:
    return [
        Question(f"{entry.name}/{which}", asked, (), (entry.name,))
        for entry in entries[::_HELD_OUT]
        for which, asked in enumerate(entry.questions)
    ]
