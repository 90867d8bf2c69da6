"""Exports as transformers meets them: small backbones imported, and the tiny model."""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import msa_train.interop.huggingface  # noqa: F401 (registers)
from msa_train.interop.backbones.convert import ImportSettings, import_backbone
from msa_train.interop.export import load_export
from msa_train.memory.bank.build import build_bank
from tests.data_pipeline.tokenizer.test_huggingface import trained
from tests.interop.backbones.models import random_model, save
from tests.memory.tiny import tiny_documents, tiny_export

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHAT,
}  # fmt: skip


@functools.cache
def _kept() -> Path:
    """A folder for this process's exports, which no test changes."""
    found = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, found, ignore_errors=True)
    return found


def _with_decoder(tokenizer: bytes) -> bytes:
    """transformers decodes with what the file says; ours needs nothing said."""
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    return json.dumps(json.loads(tokenizer) | {"decoder": {**decoder, "use_regex": True}}).encode()


@functools.cache
def imported(case: str):
    """transformers' own random model, and the start folder that was imported from it."""
    model, root = random_model(case), _kept() / case
    root.mkdir()
    source = save(model, root / "source", _with_decoder(trained()))
    (source / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    import_backbone(source, root / "start", ImportSettings(router_layers="1,3"))
    return model, root / "start"


@functools.cache
def trained_here() -> Path:
    return tiny_export(_kept() / "export")


@functools.cache
def its_bank() -> Path:
    """The tiny documents, encoded by the tiny export."""
    return bank(trained_here(), _kept() / "bank", tiny_documents())


def bank(export: Path, path: Path, documents) -> Path:
    loaded = load_export(export)
    build_bank(path, loaded.model, loaded.tokenizer, documents, loaded.fingerprint, dtype="float32")
    return path


def opened(folder: Path, **settings):
    return AutoModelForCausalLM.from_pretrained(folder, **settings)


def tokenizer_of(folder: Path):
    return AutoTokenizer.from_pretrained(folder, padding_side="left")


def prompts(folder: Path, *texts):
    """input_ids and attention_mask of some texts, padded on the left."""
    return tokenizer_of(folder)(list(texts), return_tensors="pt", padding=True)


def batch(rows=(11, 4, 8), vocabulary=500, seed=0):
    """Random input_ids, padded on the left, and their mask."""
    generator, columns = torch.Generator().manual_seed(seed), max(rows)
    ids = torch.randint(5, vocabulary, (len(rows), columns), generator=generator)
    mask = torch.arange(columns) >= columns - torch.tensor(rows)[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}
