"""config.json of an export: the published keys, byte for byte as ever, and the way back."""

import hashlib
import json
from dataclasses import replace

import pytest

from msa_train.errors import CheckpointError
from msa_train.interop.published_config import from_published, to_published
from msa_train.model.config import ModelConfig, RouterConfig
from msa_train.model.rope import RopeScaling
from tests.batches import tiny_config


def foreign(config):
    """As the publication writes it: without what is under our own key."""
    raw = to_published(config)
    del raw["msa_train"]
    return raw


def test_stretched_positions_travel():
    config = replace(tiny_config("none"), rope_scaling=RopeScaling("llama3", 8.0, 8192))
    stored = json.loads(json.dumps(to_published(config)))
    assert from_published(stored, "serving") == config
    assert stored["rope_scaling"]["rope_type"] == "llama3"
    assert not stored["msa_train"]["served_by_published_engine"]
    assert from_published(foreign(config), "serving").rope_scaling == config.rope_scaling
    assert "rope_scaling" not in to_published(tiny_config())["msa_train"]["model"]


@pytest.mark.parametrize(
    "router",
    [{}, {"gate": "none", "head_reduce": "max"}, {"similarity": "dot", "decouple": False}],
)
def test_an_export_is_read_as_it_was(router):
    config = tiny_config(**{"gate": "threshold"} | router)
    stored = json.loads(json.dumps(to_published(config)))
    for behaviour in ("training", "serving"):
        assert from_published(stored, behaviour) == config
    served = stored["msa_train"]["served_by_published_engine"]
    assert served == (config.router.gate == "none")


def test_the_bytes_are_those_that_banks_remember():
    """A model's fingerprint is of these bytes: with a new key, its banks would refuse it."""
    text = json.dumps(to_published(ModelConfig()), indent=2) + "\n"
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "63530f395605e50233e3c1317baeec999cf0dc17ec0ec4c44f10cd3239860673"
    )


def test_what_the_publication_says_is_read():
    config = replace(
        tiny_config("none", head_reduce="max", query_reduce="last", chunk_reduce="mean"),
        rope_theta=5e6,
        tie_embeddings=False,
    )
    raw = foreign(config)
    read = from_published(raw, "serving")
    assert read.router.layers == "2,3" and read.router.loss_layers == "upper_half"
    expected = replace(config.router, layers="2,3", loss_layers="upper_half")
    expected = replace(expected, gate_start=20.0, loss="infonce")  # INFONCE says so
    assert read == replace(config, router=expected)


@pytest.mark.parametrize(
    ("method", "behaviour", "similarity"),
    [
        ("INFONCE", "serving", "cosine"),
        ("INFONCE_DECOUPLE", "serving", "dot"),
        ("INFONCE_DECOUPLE", "training", "cosine"),
    ],
)
def test_the_published_engine_serves_as_the_loss_is_called(method, behaviour, similarity):
    raw = foreign(tiny_config("none"))
    raw["msa_config"]["aux_loss_method"] = method
    assert from_published(raw, behaviour).router.similarity == similarity


def test_either_name_of_top_k_is_read():
    raw = foreign(tiny_config("none"))
    for name in ("top_k_docs", "doc_top_k"):
        one = json.loads(json.dumps(raw))
        del one["msa_config"][name]
        assert from_published(one, "serving").router.top_k == 3
    del one["msa_config"]["top_k_docs" if name == "doc_top_k" else "doc_top_k"]
    with pytest.raises(CheckpointError, match="neither top_k_docs nor doc_top_k"):
        from_published(one, "serving")


def test_a_missing_key_is_named():
    for name in ("msa_config", "hidden_size", "intermediate_size"):
        raw = foreign(tiny_config("none"))
        del raw[name]
        with pytest.raises(CheckpointError, match=f"no '{name}'"):
            from_published(raw, "serving")


def test_gates_of_the_past_are_refused_by_name():
    raw = to_published(ModelConfig(router=RouterConfig(top_k=3)))
    raw["msa_train"]["model"]["router"]["gate"] = "chunk"
    with pytest.raises(ValueError, match=r"gate is 'chunk'"):
        from_published(raw, "serving")


@pytest.mark.parametrize(
    "own", [{"key_heads": 1}, {"head_dim": 4}, {"layers": "0,1", "reads": "1"}]
)
def test_routers_that_the_published_engine_does_not_know_are_not_called_served(own):
    assert to_published(tiny_config("none"))["msa_train"]["served_by_published_engine"]
    stored = to_published(tiny_config("none", **own))
    assert not stored["msa_train"]["served_by_published_engine"]
