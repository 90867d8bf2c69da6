"""Imported backbones: transformers' own logits, and a folder that all readers take."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from data_pipeline.errors import DataError
from data_pipeline.protocol import CONTROL_TOKENS, REF_END
from data_pipeline.tokenizer.huggingface import HuggingFaceTokenizer
from msa_train.config import Config, TrainingConfig
from msa_train.errors import CheckpointError, ConfigError
from msa_train.interop.backbones import convert
from msa_train.interop.backbones.convert import ImportSettings, import_backbone
from msa_train.interop.export import load_export
from msa_train.interop.published_config import from_published
from msa_train.model.decoder import PooledMemory
from msa_train.model.kv_cache import KVCache
from msa_train.training.initial_weights import starting_weights
from tests.batches import random_batch
from tests.data_pipeline.tokenizer.test_huggingface import ENDS, LACKING, trained
from tests.interop.backbones.models import (
    CASES,
    ROWS,
    logits_of,
    random_model,
    save,
    write_gguf,
)

LENGTH, PROMPT = 48, 40  # beyond what the scaled ones were trained at
RUNS = Path(__file__).resolve().parents[3] / "runs"
EXACT = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=CASES)
def imported(request, tmp_path_factory):
    """transformers' model, the report and the start folder; the untied ones from several files."""
    root, model = tmp_path_factory.mktemp("imported"), random_model(request.param)
    sharded = {} if model.config.tie_word_embeddings else {"max_shard_size": "100KB"}
    source = save(model, root / "source", **sharded)
    assert (len(list(source.glob("*.safetensors"))) > 1) == bool(sharded)
    report = import_backbone(source, root / "start", ImportSettings(router_layers="1,3"))
    return model, report, root / "start"


def sequence(config):
    """A context of LENGTH tokens that asks no memory."""
    batch = random_batch([[]], [(0, LENGTH - 3)], config)
    return replace(batch, positions=torch.arange(LENGTH), is_query=torch.zeros(LENGTH) > 0)


def test_logits_without_a_memory_are_transformers(imported, megatron):
    theirs, _, folder = imported
    model = load_export(folder).model
    batch = sequence(model.config)
    expected = logits_of(theirs, batch.tokens)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model(batch).hidden), expected, **EXACT)
        module = megatron(model.config)
        training = TrainingConfig(start_from=str(folder))
        module.load_published(starting_weights(Config(model=model.config, training=training)))
        hidden, _ = module.hidden_states(batch)
        head = module.embedding if model.config.tie_embeddings else module.output
        torch.testing.assert_close(F.linear(hidden, head.weight), expected, **EXACT)


def test_cached_decoding_is_transformers(imported):
    theirs, _, folder = imported
    model = load_export(folder).model
    batch, none = sequence(model.config), torch.zeros(1, dtype=torch.int64)
    expected = logits_of(theirs, batch.tokens)
    with torch.no_grad():
        pooled = model.encode(batch.tokens[:0], none)
        prefill = model.prefill(
            batch.tokens[:PROMPT], torch.tensor([0, PROMPT]), batch.positions[:PROMPT],
            batch.is_query[:PROMPT], batch.memory_from,
            PooledMemory(pooled, none, model.config.router),
        )  # fmt: skip
        torch.testing.assert_close(model.logits(prefill.hidden), expected[:PROMPT], **EXACT)
        cache = KVCache(model.config, 1, LENGTH, prefill.hidden)
        cache.admit(prefill, (0,), (0,))
        for place in range(PROMPT, LENGTH):
            step = model.decode(batch.tokens[place : place + 1], cache, cache.begin_step([True]))
            torch.testing.assert_close(model.logits(step), expected[place : place + 1], **EXACT)


def test_every_weight_is_the_sources_and_routers_are_their_keys(imported):
    theirs, report, folder = imported
    stored = load_file(folder / "model.safetensors")
    source = theirs.state_dict()
    if theirs.config.tie_word_embeddings:
        source.pop("lm_head.weight")
    routers = {name for name in stored if ".router_" in name}
    assert stored.keys() - routers == source.keys()
    assert all(torch.equal(stored[name], weight) for name, weight in source.items())
    assert len(routers) == 4 and report.router_layers == (1, 3)
    keys = source["model.layers.3.self_attn.k_proj.weight"]
    assert torch.equal(stored["model.layers.3.self_attn.router_k_proj.0.weight"], keys)
    assert report.parameters == sum(weight.numel() for weight in source.values())
    assert report.router_parameters == sum(stored[name].numel() for name in routers)


def test_the_report_and_the_card_say_what_was_done(tmp_path):
    path = write_gguf(random_model("llama"), tmp_path / "small.gguf")
    report = import_backbone(path, tmp_path / "start", ImportSettings(dtype="bfloat16"))
    assert (report.name, report.licence) == ("a small model", "apache-2.0")
    assert report.router_layers == (2, 3) and report.architecture == "llama"
    assert report.written == {"bfloat16": sum(report.stored.values()) + 4}
    assert (report.rows, report.protocol_tokens, report.chat_template) == (ROWS, {}, True)
    card = (tmp_path / "start" / "README.md").read_text()
    assert "license: apache-2.0" in card and "layers 2, 3" in card
    assert (tmp_path / "start" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert report.bytes == (tmp_path / "start" / "model.safetensors").stat().st_size


SHORT = trained(LACKING, ENDS)


def test_a_control_token_that_is_missing_is_spelled(tmp_path):
    source = save(random_model("qwen3"), tmp_path / "source", SHORT)
    report = import_backbone(source, tmp_path / "start")
    loaded = load_export(tmp_path / "start")
    count = len(loaded.tokenizer.control_ids(REF_END))
    assert report.protocol_tokens == {REF_END: f"spelled in {count} ordinary tokens"}
    assert report.rows == ROWS
    assert (tmp_path / "start" / "tokenizer.json").read_bytes() == SHORT


@pytest.mark.parametrize("case", ["qwen3", "llama"])
def test_a_control_token_that_is_missing_is_added(tmp_path, case):
    model, known = random_model(case), HuggingFaceTokenizer(SHORT)
    model.resize_token_embeddings(known.vocab_size)  # no row to spare
    source = save(model, tmp_path / "source", SHORT)
    report = import_backbone(source, tmp_path / "start", ImportSettings(protocol_tokens="add"))
    loaded = load_export(tmp_path / "start")
    assert loaded.tokenizer.spelled == () and REF_END in report.protocol_tokens
    pieces = known.encode_text(REF_END)
    before = model.get_input_embeddings().weight.detach()
    after = loaded.model.model.embed_tokens.weight
    assert torch.equal(after[: len(before)], before)
    token = loaded.tokenizer.control_ids(REF_END)[0]
    torch.testing.assert_close(after[token], before[pieces].mean(0))
    if not model.config.tie_word_embeddings:
        head = model.get_output_embeddings().weight.detach()
        torch.testing.assert_close(loaded.model.lm_head.weight[token], head[pieces].mean(0))
    assert report.rows > known.vocab_size and report.vocabulary == known.vocab_size + 1


def _config(**changed):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return change


def _weights(change):
    def apply(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return apply


def _cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _integers(weights):
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)


BROKEN = {
    "unknown key": (_config(final_logit_softcapping=30.0), "unknown key 'final_logit_softcapping'"),
    "moe": (_config(num_experts=8), "unknown key 'num_experts'"),
    "window": (_config(use_sliding_window=True, sliding_window=64), "sliding_window"),
    "family": (_config(model_type="mamba"), "model_type 'mamba'"),
    "a billion layers": (_config(num_hidden_layers=10**9), "num_hidden_layers 1000000000, but"),
    "no number": (_config(intermediate_size="48"), "intermediate_size '48': it should be a number"),
    "no heads": (_config(num_attention_heads=0), "num_attention_heads 0: it should be a number"),
    "half a head": (_config(head_dim=8.5), r"head_dim 8\.5: it should be a number"),
    "rotation": (_config(rope_scaling={"type": "linear", "factor": 2.0}), "rope_type 'linear'"),
    "cut off": (_cut, "model.safetensors cannot be read"),
    "missing": (
        _weights(lambda weights: weights.pop("model.layers.2.mlp.up_proj.weight")),
        r"no weight model\.layers\.2\.mlp\.up_proj\.weight \(1 are missing\)",
    ),
    "extra": (
        _weights(lambda weights: weights.update({"model.vision.weight": torch.ones(2)})),
        r"such as model\.vision\.weight",
    ),
    "shape": (
        _config(intermediate_size=40),
        r"of shape \[48, 32\], by its config\.json \[40, 32\]",
    ),
    "not finite": (
        _weights(
            lambda weights: weights["model.layers.2.mlp.up_proj.weight"][3, 4:].fill_(math.nan)
        ),
        r"model\.layers\.2\.mlp\.up_proj\.weight has numbers that are not finite",
    ),
    "integers": (_weights(_integers), "model.norm.weight in I8"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"holds no \*\.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_source_is_refused_and_nothing_is_written(tmp_path, name):
    source = save(random_model("qwen3"), tmp_path / "source")
    change, words = BROKEN[name]
    change(source)
    with pytest.raises(CheckpointError, match=words):
        import_backbone(source, tmp_path / "start")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_other_things_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        import_backbone(tmp_path / "nowhere", tmp_path / "start")
    source = save(random_model("qwen3"), tmp_path / "source")
    with pytest.raises(CheckpointError, match="source exists"):
        import_backbone(source, source)
    with pytest.raises(ConfigError, match=r"router\.layers is '9'"):
        import_backbone(source, tmp_path / "start", ImportSettings(router_layers="9"))
    with pytest.raises(ConfigError, match="--dtype is 'int8'"):
        ImportSettings(dtype="int8")
    (source / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="no tokenizer in"):
        import_backbone(source, tmp_path / "start")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_import_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch, error):
    source = save(random_model("qwen3"), tmp_path / "source")

    def fail(*_):
        raise error

    monkeypatch.setattr(convert, "to_published", fail)  # the weights are written by then
    with pytest.raises((KeyboardInterrupt, CheckpointError)):
        import_backbone(source, tmp_path / "start")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.slow
def test_smollm2_is_transformers_reading_of_its_file(tmp_path):
    """The model that `make backbone` fetches, where it was fetched."""
    found = list((RUNS / "backbone-download").rglob("*.gguf"))
    if not found:
        pytest.skip("no runs/backbone-download: `make backbone` fetches it")
    (path,) = found
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    import_backbone(path, tmp_path / "start")
    loaded = load_export(tmp_path / "start")
    model, tokenizer = loaded.model, loaded.tokenizer
    tokens = torch.tensor(tokenizer.encode_text("The capital of Italy is"))
    for _ in range(5):
        batch = random_batch([[]], [(0, len(tokens) - 3)], model.config)
        batch = replace(batch, tokens=tokens, positions=torch.arange(len(tokens)))
        with torch.no_grad():
            logits = model.logits(model(batch).hidden)
        torch.testing.assert_close(logits, logits_of(theirs, tokens), rtol=1e-5, atol=1e-4)
        tokens = torch.cat([tokens, logits[-1:].argmax(1)])
    assert tokenizer.decode(tokens.tolist()).startswith("The capital of Italy is Rome.")
    assert set(CONTROL_TOKENS) - set(tokenizer.spelled) == {"<|im_start|>", "<|im_end|>"}


TURNS = "{{ '<|im_start|>user' }}{{ messages[0].content }}<|im_end|>"


@pytest.mark.parametrize(
    ("template", "tokenizer", "answers"),
    [(TURNS, None, "chat"), ("{{ messages }}", None, "protocol"), (TURNS, "short", "protocol")],
)
def test_a_backbone_of_these_turns_answers_in_its_own_form(tmp_path, template, tokenizer, answers):
    """Not one whose template has others, nor one that would have them spelled."""
    changed = {"tokenizer.chat_template": template}
    spelled = (("<|begin_of_text|>",), (*ENDS, *["im start"] * 20))
    lacking = trained(*spelled) if tokenizer else None
    path = write_gguf(
        random_model("llama"), tmp_path / "small.gguf", changed=changed, tokenizer=lacking
    )
    import_backbone(path, tmp_path / "start")
    stored = json.loads((tmp_path / "start" / "config.json").read_text())
    assert from_published(stored, "serving").answers == answers
    shown = "answers: chat" in (tmp_path / "start" / "README.md").read_text()
    assert shown == (answers == "chat")
