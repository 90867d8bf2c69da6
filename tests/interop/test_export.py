"""Checkpoint -> export -> serving module: every rank count's weights, and what is refused."""

import json
import re
import weakref
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from msa_train import checkpoint_folders
from msa_train.config import Config, TrainingConfig, to_plain
from msa_train.errors import CheckpointError, FileError
from msa_train.interop.export import FINGERPRINT, Placement, check_export, export, load_export
from msa_train.model.weights import initial_reader, megatron_shard, weight_maps, weight_shapes
from msa_train.training.initial_weights import starting_weights
from tests.batches import tiny_config
from tests.interop.huggingface.folders import batch, imported, opened
from tests.memory.tiny import tiny_export, tiny_tokenizer


def checkpoint(run, ranks=1, step=3, model=None, read=None, tokenizer=None, start=None):
    """What training leaves under tensor parallelism, of a fresh model or of other weights."""
    tokenizer = tokenizer or tiny_tokenizer()
    model = model or replace(tiny_config(), vocab_size=tokenizer.vocab_size)
    partial = run / "checkpoints" / checkpoint_folders.partial_name(step)
    partial.mkdir(parents=True)
    settings = to_plain(replace(Config(), model=model))
    settings["training"] |= {"tensor_parallel": ranks, "start_from": start}
    (partial / "config.yaml").write_text(yaml.safe_dump(settings))
    tokenizer.save(partial / "tokenizer")
    read = read or initial_reader(model, 0)
    for rank in range(ranks):
        shard = {
            each.megatron: megatron_shard(each, read, model, rank, ranks).contiguous()
            for each in weight_maps(model)
        }
        save_file(shard, partial / f"weights-tp{rank}.safetensors")
    return checkpoint_folders.seal(partial, step, checkpoint_folders.digests(partial)), model


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_export_is_the_checkpoints_model(tmp_path, ranks):
    folder, model = checkpoint(tmp_path / "run", ranks)
    made = export(tmp_path / "run", tmp_path / "export")
    assert made.checkpoint == folder
    loaded = load_export(tmp_path / "export")
    assert loaded.model.config == model and not loaded.model.training
    assert loaded.fingerprint == made.fingerprint
    assert made.fingerprint.keys() == {"weights", "config", "tokenizer"}
    text = "Where is the harbour?"
    assert loaded.tokenizer.encode_text(text) == tiny_tokenizer().encode_text(text)
    read = initial_reader(model, 0)
    for name in weight_shapes(model):
        assert torch.equal(loaded.model.get_parameter(name), read(name)), name


@pytest.mark.parametrize("case", ["llama-llama3", "qwen2", "qwen3-yarn"])
def test_a_backbone_comes_back_through_an_export_to_transformers(tmp_path, case):
    """Imported, exported by a run that changed nothing, and opened as it was: by its own class,
    and with a memory's."""
    theirs, start = imported(case)
    run, config = tmp_path / "run", replace(check_export(start)[0], answers="protocol")
    training = TrainingConfig(start_from=str(start))
    read = starting_weights(Config(model=config, training=training))
    folder, _ = checkpoint(run, 1, 3, config, read, load_export(start).tokenizer, str(start))
    export(run, tmp_path / "export")
    card = (tmp_path / "export" / "README.md").read_text()
    origin = re.search(r"backbone \*.*?\*", (start / "README.md").read_text())[0]
    assert origin in card and f"To {folder.name}" in card
    assert "trained with the rest of the model" in card and "trained yet" not in card
    given = batch()
    there, ends = given["attention_mask"].bool(), {"eos_token_id": 2, "pad_token_id": 0}
    raw = json.loads((tmp_path / "export" / "config.json").read_text())
    del raw["sliding_window"]  # false: a window to Llama, no number to Qwen
    plain = type(theirs).from_pretrained(
        tmp_path / "export", config=type(theirs.config).from_dict(raw)
    )
    ours = opened(tmp_path / "export")
    for name, weight in theirs.named_parameters():
        assert torch.equal(plain.get_parameter(name), weight), name
        assert torch.equal(ours.get_parameter(name), weight), name
    with torch.no_grad():
        expected = theirs(**given).logits[there]
        assert torch.equal(plain(**given).logits[there], expected)
        torch.testing.assert_close(ours(**given).logits[there], expected, rtol=1e-5, atol=1e-5)
    tokens = [m.generate(**given, max_new_tokens=8, **ends) for m in (theirs, plain, ours)]
    assert torch.equal(tokens[0], tokens[1]) and torch.equal(tokens[0], tokens[2])


def test_the_same_weights_have_the_same_fingerprint(tmp_path):
    for ranks in (1, 2):
        checkpoint(tmp_path / f"run{ranks}", ranks)
    one, two = (export(tmp_path / f"run{n}", tmp_path / f"e{n}") for n in (1, 2))
    assert one.fingerprint == two.fingerprint


def test_a_folder_that_is_there_stays(tmp_path):
    folder, _ = checkpoint(tmp_path / "run")
    (tmp_path / "export").mkdir()
    with pytest.raises(CheckpointError, match="exists"):
        export(folder, tmp_path / "export")
    assert not list((tmp_path / "export").iterdir())


def test_nothing_to_export_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        export(tmp_path, tmp_path / "export")


def test_an_export_that_was_changed_is_refused_by_part(tmp_path):
    checkpoint(tmp_path / "run")
    folder = tmp_path / "export"
    export(tmp_path / "run", folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="weights changed since the export"):
        load_export(folder)
    (folder / FINGERPRINT).unlink()
    with pytest.raises(CheckpointError, match="no complete export"):
        load_export(folder)


def test_a_config_with_another_rotation_is_refused(tmp_path):
    checkpoint(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "export")
    path = tmp_path / "export" / "config.json"
    scaling = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
    raw = json.loads(path.read_text()) | {"rope_scaling": scaling}
    path.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"says rope_scaling RopeScaling.* None"):
        load_export(tmp_path / "export")


def test_an_export_computes_in_the_dtype_that_is_asked_for(tmp_path):
    folder = tiny_export(tmp_path / "e")
    exact, rough = (
        load_export(folder, Placement(compute=compute)) for compute in ("float32", "bfloat16")
    )
    assert exact.fingerprint == rough.fingerprint
    for name, weight in exact.model.state_dict().items():
        assert torch.equal(rough.model.state_dict()[name], weight.bfloat16()), name


def test_a_model_is_loaded_without_a_copy_of_it_in_another_dtype(tmp_path):
    """Beside its weights no more is alive at once than two of them as they are stored."""
    folder, made, most = tiny_export(tmp_path / "e"), [], 0

    class Alive(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal most
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.device.type == "cpu":
                made.append(weakref.ref(out))
                wide = [x for each in made if (x := each()) is not None and x.dtype.itemsize > 2]
                most = max(most, sum(x.nbytes for x in wide))
            return out

    state = torch.get_rng_state()
    with Alive():
        loaded = load_export(folder, Placement(compute="bfloat16"))
    weights = list(loaded.model.parameters())
    assert all(weight.dtype == torch.bfloat16 for weight in weights)
    sizes = [4 * weight.numel() for weight in weights]
    assert 0 < most <= 2 * max(sizes) + 1000 < sum(sizes) / 2
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn


def test_an_exports_weights_may_be_read_by_whom_its_config_may(tmp_path):
    checkpoint(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "export")
    modes = {path.stat().st_mode for path in (tmp_path / "export").iterdir()}
    assert len(modes) == 1 and modes.pop() & 0o044


def test_a_full_disk_names_the_export(tmp_path, monkeypatch):
    def full(weights, path, metadata):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    checkpoint(tmp_path / "run")
    monkeypatch.setattr("msa_train.interop.export.save_file", full)
    with pytest.raises(FileError, match=r"/export: No space left on device; make room"):
        export(tmp_path / "run", tmp_path / "export")
    assert not (tmp_path / "export").exists()
