"""Stretched positions: transformers' own frequencies and factor, and what is refused."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from msa_train.errors import ConfigError
from msa_train.model.ops import rotary_tables
from msa_train.model.rope import RopeScaling

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize(
    "published",
    [
        LLAMA3,
        {**LLAMA3, "factor": 32.0, "low_freq_factor": 2.0},
        YARN,
        {**YARN, "original_max_position_embeddings": 16},
        {**YARN, "mscale": 1.2, "mscale_all_dim": 0.7, "truncate": False},
        {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.3},
    ],
    ids=str,
)
def test_it_is_transformers(published, theta):
    their = LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=131072,
        rope_parameters={**published, "rope_theta": theta},
    )  # fmt: skip
    frequencies, factor = ROPE_INIT_FUNCTIONS[published["rope_type"]](their, "cpu")
    scaling = RopeScaling.from_published(published, None)
    positions = torch.tensor([0, 1, 77, 4096])
    angle = positions[:, None] * frequencies
    cos, sin = rotary_tables(positions, 64, theta, scaling)
    torch.testing.assert_close(cos, angle.cos() * factor, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(sin, angle.sin() * factor, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(cos[:3], angle[:3].cos() * factor, rtol=1e-5, atol=2e-5)
    plain = 1 / theta ** (torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(scaling.frequencies(plain, theta), frequencies, rtol=1e-6, atol=0)
    assert scaling.length_factor == pytest.approx(factor, rel=1e-12)
    assert RopeScaling.from_published(scaling.to_published(), None) == scaling


@pytest.mark.parametrize(
    ("published", "words"),
    [
        ({"rope_type": "linear", "factor": 2.0}, "rope_type 'linear': supported are default"),
        ({"rope_type": "longrope"}, "'longrope'"),
        ({"rope_type": "default", "factor": 2.0}, "unknown key 'factor'"),
        ({**LLAMA3, "beta_fast": 32}, "'llama3' with the unknown key 'beta_fast'"),
        ({**YARN, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_type": "yarn", "factor": 2.0}, "without original_max_position_embeddings"),
        ({"rope_type": "yarn"}, "without factor"),
        ({**YARN, "factor": 0.0}, "factor is 0"),
        ({**YARN, "factor": "4"}, "factor '4': it should be a number"),
        (["yarn"], "where an object belongs"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor is 1"),
    ],
    ids=str,
)
def test_what_is_not_computed_is_refused_by_name(published, words):
    with pytest.raises(ConfigError, match=words):
        RopeScaling.from_published(published, None)


def test_plain_rotation_is_none():
    assert RopeScaling.from_published({"rope_type": "default", "rope_theta": 1e4}, 4096) is None
    with pytest.raises(ConfigError, match=r"rope_scaling\.rope_type is 'ntk'"):
        RopeScaling("ntk", 2.0, 16)
