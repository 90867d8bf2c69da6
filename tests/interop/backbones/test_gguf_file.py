"""GGUF files: every type of numbers, rows put back in order, keys and what is refused."""

import builtins
import random

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from data_pipeline.errors import DataError
from msa_train.errors import CheckpointError, MissingDependencyError, MSAError
from msa_train.interop.backbones.convert import import_backbone
from msa_train.interop.backbones.folder import HuggingFaceFolder
from msa_train.interop.backbones.gguf_file import QUANTISED, GGUFFile
from msa_train.model.architecture import whole_geometry
from msa_train.model.rope import RopeScaling
from tests.interop.backbones import models
from tests.interop.backbones.models import quantised, random_model, save, write_gguf

WIDE = {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 256}


@pytest.mark.parametrize("case", ["llama", "llama-llama3", "qwen2", "qwen3"])
def test_whole_numbers_are_the_folders(tmp_path, case):
    """Rows of a llama's q and k were interleaved; nobody else's were."""
    model = random_model(case)
    folder = HuggingFaceFolder(save(model, tmp_path / "folder"))
    changed = {}
    if case == "llama-llama3":
        changed = {f"llama.{key}": None for key in ("attention.key_length",)}
    file = GGUFFile(write_gguf(model, tmp_path / "file.gguf", changed=changed))
    ours, theirs = dict(file.weights()), dict(folder.weights())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    expected = whole_geometry(folder.config) | {"rope_scaling": None}
    assert whole_geometry(file.config) == expected


@pytest.fixture(scope="module")
def wide():
    """A llama whose rows fill the blocks of K-quants."""
    models.CASES["wide"] = ("Llama", {**WIDE, "tie_word_embeddings": True}, {})
    model = random_model("wide")
    model.config.intermediate_size = 256
    model = type(model)(model.config).eval()
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    yield model
    del models.CASES["wide"]


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", *QUANTISED])
def test_numbers_are_those_that_gguf_reads(tmp_path, wide, name):
    kind = Kind[name]
    file = GGUFFile(write_gguf(wide, tmp_path / "file.gguf", kind))
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16}.get(name, torch.float32)
    found = dict(file.weights())
    for key, weight in wide.state_dict().items():
        if key == "lm_head.weight":
            continue
        if weight.dim() == 1:
            assert torch.equal(found[key], weight)
            continue
        heads = {"q_proj": 8, "k_proj": 4}.get(key.split(".")[-2])
        packed = quantised(weight.numpy(), kind)
        if heads:
            packed = quantised(models.interleaved(weight.numpy(), heads), kind)
        numbers = gguf.dequantize(packed, kind)
        if heads:  # of every head the even rows, then the odd ones
            size = len(numbers) // heads
            rows = [h * size + i for h in range(heads) for half in (0, 1) for i in
                    range(half, size, 2)]  # fmt: skip
            numbers = numbers[rows]
        assert found[key].dtype == dtype and file.stored[key].form == name
        expected = torch.from_numpy(np.array(numbers)).to(dtype)
        assert torch.equal(found[key], expected), key


def test_yarn_is_read(tmp_path):
    scaling = {
        "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 16, "rope.scaling.yarn_beta_fast": 16.0,
    }  # fmt: skip
    changed = {f"qwen2.{key}": value for key, value in scaling.items()}
    file = GGUFFile(write_gguf(random_model("qwen2-yarn"), tmp_path / "file.gguf", changed=changed))
    expected = RopeScaling("yarn", 4.0, 16, beta_fast=16.0)
    assert whole_geometry(file.config)["rope_scaling"] == expected


@pytest.mark.parametrize("known", [True, False])
def test_llama3s_divisors_are_recognised(tmp_path, monkeypatch, known):
    """A file has no settings of this scaling, only what each frequency is divided by."""
    scaling = RopeScaling("llama3", 8.0, 8192, high_freq_factor=4.0 if known else 3.0)
    plain = 5e5 ** -(torch.arange(4, dtype=torch.float32) / 4)
    divisors = (plain / scaling.frequencies(plain, 5e5)).numpy()
    real = models._add
    monkeypatch.setattr(models, "_add", lambda writer, name, weight, kind: (
        real(writer, name, weight, kind),
        writer.add_tensor("rope_freqs.weight", divisors) if name.startswith("output_norm") else 0,
    ))  # fmt: skip
    changed = {"llama.rope.freq_base": 5e5}
    path = write_gguf(random_model("llama"), tmp_path / "file.gguf", changed=changed)
    if known:
        assert whole_geometry(GGUFFile(path).config)["rope_scaling"] == scaling
    else:
        with pytest.raises(CheckpointError, match=r"rope_freqs\.weight that are not those of"):
            GGUFFile(path)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"llama.expert_count": 8}, r"llama\.expert_count 8: supported is only 0"),
        ({"llama.attention.sliding_window": 64}, r"unknown key llama\.attention\.sliding_window"),
        ({"llama.rope.scaling.type": "linear"}, r"rope\.scaling\.type 'linear'"),
        ({"llama.rope.dimension_count": 4}, r"rope\.dimension_count 4: supported is only 8"),
        ({"llama.logit_scale": 2.0}, r"unknown key llama\.logit_scale \(2\.0\)"),
        ({"llama.attention.head_count": [9, 9, 9, 9]}, r"head_count by layer"),
        ({"llama.embedding_length": None}, "no 'hidden_size'"),
        ({"split.count": 2}, "one of several parts"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_be_computed_wrongly_is_refused_by_name(tmp_path, changed, words):
    path = write_gguf(random_model("llama"), tmp_path / "file.gguf", changed=changed)
    with pytest.raises(CheckpointError, match=words):
        whole_geometry(GGUFFile(path).config)


def test_weights_that_are_not_known_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(models._LAYER, "mlp.up_proj", "ffn_up_exps")
    path = write_gguf(random_model("llama"), tmp_path / "file.gguf")
    with pytest.raises(CheckpointError, match=r"the weight blk\.0\.ffn_up_exps\.weight"):
        GGUFFile(path)


def test_types_that_are_not_known_are_refused(tmp_path, wide):
    path = write_gguf(wide, tmp_path / "file.gguf", Kind.TQ2_0)
    with pytest.raises(CheckpointError, match="in TQ2_0: supported are F32, F16"):
        GGUFFile(path)


def test_what_is_no_file_of_this_kind_is_refused(tmp_path):
    path = tmp_path / "file.gguf"
    path.write_bytes(b"PK\x03\x04 a zip")
    with pytest.raises(CheckpointError, match=r"begins with b'PK.*no GGUF file"):
        GGUFFile(path)
    whole = write_gguf(random_model("llama"), tmp_path / "whole.gguf").read_bytes()
    for size in (4, 20, 1000, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="cannot be read"):
            GGUFFile(path)


@pytest.mark.parametrize("seed", range(12))
def test_damaged_fields_are_refused_in_words(tmp_path, seed):
    """Or they are read: a byte may be of no account. Never another error."""
    path = write_gguf(random_model("llama"), tmp_path / "file.gguf")
    data, rng = bytearray(path.read_bytes()), random.Random(seed)
    first = gguf.GGUFReader(path).data_offset
    for _ in range(3):
        data[rng.randrange(first)] = rng.randrange(256)
    path.write_bytes(data)
    try:
        import_backbone(path, tmp_path / "start")
    except (MSAError, DataError):
        assert not (tmp_path / "start").exists()


def test_another_architecture_is_refused(tmp_path):
    model = random_model("llama")
    model.config.model_type = "phi3"
    file = GGUFFile(write_gguf(model, tmp_path / "file.gguf"))
    with pytest.raises(CheckpointError, match="model_type 'phi3': supported are qwen3, llama"):
        whole_geometry(file.config)


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *given):
        if name == "gguf":
            raise ModuleNotFoundError("no gguf", name="gguf")
        return real(name, *given)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"'msa-train\[backbone\]'"):
        GGUFFile(tmp_path / "file.gguf")
