"""configs/train/msa-4b.yaml as its user runs it, with nothing changed but its sizes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from data_pipeline.tokenizer import load_tokenizer
from msa_train.cli import main
from msa_train.config import load_config, load_config_file
from msa_train.interop.export import load_export
from msa_train.model.architecture import GEOMETRY
from msa_train.model.config import PRESETS
from tests.data_pipeline.converters.files import write_json, write_jsonl
from tests.data_pipeline.converters.test_dpr import DPR
from tests.data_pipeline.converters.test_hotpotqa import BRIDGE
from tests.data_pipeline.converters.test_musique import MUSIQUE
from tests.data_pipeline.tokenizer.test_huggingface import trained
from tests.distributed.runs import logged
from tests.interop.backbones.models import save

CONFIG = Path(__file__).resolve().parents[2] / "configs/train/msa-4b.yaml"
SIZES = {
    "num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "intermediate_size": 48, "vocab_size": 512,
}  # fmt: skip
START = Path("backbones/qwen3-4b")  # as the YAML names it
STARTED = {"layers": "0,1", "query_reduce": "pooled", "key_heads": "2", "head_dim": "16"}


def squad(first, count):
    """Paragraphs, each with a question."""

    def paragraph(i):
        answer = {"text": f"sea {i}", "answer_start": 24}
        asked = {"id": f"q{i}", "question": f"Where flows river {i}?", "answers": [answer]}
        return {"context": f"River number {i} flows to sea {i}.", "qas": [asked]}

    of = [paragraph(i) for i in range(first, first + count)]
    return {"data": [{"title": "Rivers", "paragraphs": of}]}


def backbone(folder):
    """A random Qwen3 as Hugging Face has it, in several files."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 5e6}
    config = transformers.Qwen3Config(**SIZES, rope_parameters=rope, tie_word_embeddings=True)
    model = transformers.Qwen3ForCausalLM(config).to(torch.bfloat16)
    save(model, folder, trained(), max_shard_size="50KB")
    (folder / "chat_template.jinja").write_text(
        "{{ '<|im_start|>user' + messages + '<|im_end|>' }}"
    )
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def convert_all():
    """The four sets, in the forms in which they are published."""
    files = {
        "squad": ("squad", write_json, (squad(0, 200),), (squad(200, 9),)),
        "nq": ("dpr", write_json, ([DPR],), ([{**DPR, "question": "who mews"}],)),
        "hotpotqa": ("hotpotqa", write_json, ([BRIDGE],), ([{**BRIDGE, "_id": "5b"}],)),
        "musique": ("musique", write_jsonl, (MUSIQUE,), ({**MUSIQUE, "id": "2hop__1_2"},)),
    }
    for name, (form, write, train, dev) in files.items():
        paths = [str(write(Path(f"{name}-{i}"), *each)) for i, each in enumerate((train, dev))]
        how = ["--split", "train,dev", "--out", f"datasets/{name}"]
        assert main(["data", "convert", form, *paths, *how]) == 0


def scaled():
    """Overrides of sizes alone: the model's, memories a 64th as long, a step of every stage."""
    plain = yaml.safe_load(CONFIG.read_text())
    stages, training = plain["stages"], plain["training"]
    for stage in stages:
        del stage["tokens"]
        stage |= {"steps": 1, "data": {"memory_tokens": stage["data"]["memory_tokens"] // 64}}
    sizes = {f"model.{GEOMETRY[key]}": size for key, size in SIZES.items()} | {
        "stages": json.dumps(stages),
        "training.batch_samples": training["batch_samples"] // 16,
        "training.held_out_samples": training["held_out_samples"] // 8,
        "data.workers": 1,
        "training.log_every": 1,
        "training.wandb.mode": "off",
    }
    return [part for name, value in sizes.items() for part in (f"--{name}", str(value))]


def test_its_model_is_the_publication_s():
    config = load_config_file(CONFIG)
    assert config.model == replace(PRESETS["4b"], answers="chat")
    assert config.training.start_from == config.data.tokenizer.path == str(START)


@pytest.mark.parametrize(
    ("ranks", "router"),
    [(1, {}), pytest.param(2, STARTED, marks=pytest.mark.slow)],
    ids=["imported", "started-2"],
)
def test_it_trains_what_was_imported(tmp_path, monkeypatch, ranks, router):
    """Import, conversion, shards, a step of each stage by the launcher, export. router: settings of
    one that `msa router start` made."""
    monkeypatch.chdir(tmp_path)
    # One thread for each rank: two of one rank would wait for each other beside other tests.
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(ranks)))
    assert main(["import", str(backbone(tmp_path / "Qwen3-4B")), str(START)]) == 0
    convert_all()
    begun = Path("backbones/started") if router else START
    if router:
        assert main(["router", "start", str(START), "datasets/squad", "--out", str(begun)]) == 0
    run = ["--config", str(CONFIG), *scaled(), "--training.start_from", str(begun)]
    run += [part for name, value in router.items() for part in (f"--model.router.{name}", value)]
    assert main(["data", "build", *run]) == 0
    assert main(["train", *run, "--ranks", str(ranks)]) == 0
    config = load_config(run)
    assert config.corpus.used_sources == tuple(config.data.datasets)
    target = config.path / "export"
    assert main(["export", config.output, str(target)]) == 0
    exported, before = load_export(target), load_export(begun)
    assert exported.model.config == config.model
    own = replace(config.model.router, gate="none", reads=before.model.config.router.reads)
    assert before.model.config == replace(config.model, router=own)
    assert exported.tokenizer.fingerprint == load_tokenizer(START).fingerprint
    for name in (
        "tokenizer_config.json",
        "chat_template.jinja",
    ):  # of which transformers makes chats
        assert (target / name).read_bytes() == (START / name).read_bytes()
    rows = logged(config.path)
    assert "held_out/squad_text/forgetting" in rows[-1]
    assert [row["stage"] for row in rows if "loss/lm" in row] == [0, 1, 2, 3]
    first, last = (load_file(folder / "model.safetensors") for folder in (begun, target))
    for name, weight in first.items():  # no step of Adam's is longer than the learning rate
        rounded = weight.bfloat16().float()  # as training in bfloat16 begins
        assert 0 < float((last[name] - rounded).abs().max()) < 2e-5, name
