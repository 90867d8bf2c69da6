"""Settings of a tracked run, and the folders that it would leave."""

import json

from msa_train.config import load_config


def load(tmp_path, *settings):
    output = tmp_path / "needles"
    output.mkdir(exist_ok=True)
    return load_config(
        ["--output", str(output), "--training.wandb.mode", "offline",
         "--training.wandb.finish_timeout_s", "120", "--model.layers", "3",
         "--model.router.layers", "2", *settings]
    )  # fmt: skip


def save_checkpoint(output, step, run_id, config):
    folder = output / "checkpoints" / f"step-{step:09d}"
    folder.mkdir(parents=True)
    (folder / "weights-tp0.safetensors").write_bytes(bytes([step % 256]) * 99)
    (folder / "state.json").write_text(json.dumps({"step": step, "wandb_id": run_id}))
    config.save(folder / "config.yaml")
    return folder


def save_export(output):
    folder = output / "export"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"w" * 50)
    (folder / "fingerprint.json").write_text('{"weights": "1234"}')
    return folder


def save_shards(output):
    folder = output / "shards"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.model").write_bytes(b"t")
    (folder / "index.npy").write_bytes(b"i")
    manifest = {"format": "msa-shards-2", "batch_samples": 2, "settings": {}, "tokenizer": "abcd",
                "samples": 7, "shards": [10, 20], "stages": []}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
