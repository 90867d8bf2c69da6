"""Starting points: a fresh model, a backbone without a router, and those of another model."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from msa_train.config import Config, TrainingConfig
from msa_train.errors import CheckpointError
from msa_train.interop.published_config import to_published
from msa_train.model.weights import initial_weight, weight_shapes
from msa_train.training.initial_weights import starting_weights
from tests.batches import tiny_config

MODEL = replace(tiny_config(), tie_embeddings=False)
# As a converted backbone's config.json has it.
BACKBONE = {
    "model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, "vocab_size": 64,
    "rope_theta": 1e4, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu",
    "attention_bias": False, "rope_scaling": None, "torch_dtype": "bfloat16",
    "attention_dropout": 0.0, "max_position_embeddings": 4096, "use_cache": True,
}  # fmt: skip


@pytest.fixture
def backbone(tmp_path):
    """A folder, and the settings of a run that starts from it: called with changed keys."""
    folder = tmp_path / "backbone"
    folder.mkdir()
    names = [name for name in weight_shapes(MODEL) if ".router_" not in name]
    save_file({n: initial_weight(n, MODEL, 5) for n in names}, folder / "model.safetensors")

    def start(raw=None, model=MODEL, **changed):
        (folder / "config.json").write_text(json.dumps((raw or BACKBONE) | changed))
        training = TrainingConfig(start_from=str(folder))
        return starting_weights(Config(model=model, training=training))

    return start


def test_without_a_start_weights_are_the_seeds():
    read, name = starting_weights(Config(model=MODEL, seed=7)), "lm_head.weight"
    assert torch.equal(read(name), initial_weight(name, MODEL, 7))


def test_a_router_that_is_missing_begins_as_its_layers_key_projection(backbone):
    read, prefix = backbone(), "model.layers.2.self_attn."
    keys = initial_weight(f"{prefix}k_proj.weight", MODEL, 5)
    assert torch.equal(read(f"{prefix}router_k_proj.0.weight"), keys)
    queries = read(f"{prefix}router_q_proj.0.weight").unflatten(0, (2, 2, 8))
    assert torch.equal(queries[:, 0], queries[:, 1])
    assert torch.equal(queries[:, 1].flatten(0, 1), keys)
    assert float(read(f"{prefix}router_gate")) == MODEL.router.gate_start


def test_an_export_is_a_start_as_well(backbone):
    assert backbone(to_published(MODEL))("lm_head.weight").shape == (64, 32)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling .* without factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, r"model\.rope_scaling is None"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"sliding_window": 128}, "sliding_window 128"),
        ({"num_experts": 8}, "unknown key 'num_experts'"),
        ({"model_type": "gemma"}, "model_type 'gemma'"),
        ({"num_attention_heads": 2}, r"model\.heads is 4, but .* num_attention_heads 2"),
        ({"rope_theta": 5e5}, r"model\.rope_theta is 10000\.0, but .* rope_theta 500000"),
        ({"rms_norm_eps": 1e-5}, r"model\.norm_eps"),
        ({"tie_word_embeddings": True}, r"model\.tie_embeddings"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_load_and_be_computed_wrongly_is_refused_by_name(backbone, changed, words):
    with pytest.raises(CheckpointError, match=words):
        backbone(**changed)


def test_a_start_of_another_geometry_is_refused(backbone):
    for change, words in (
        ({"ffn": 64}, r"mlp\.gate_proj\.weight has shape"),
        ({"layers": 6}, r"has no weight model\.layers\.4"),
        ({"layers": 2}, "weights that model"),
    ):
        with pytest.raises(CheckpointError, match=words):
            backbone(model=replace(MODEL, **change))
