"""A backbone as a GGUF file of llama.cpp holds it, its weights whole or quantised.

The numbers of a quantised weight are those that the `gguf` library reads out of it, exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msa_train.errors import CheckpointError, MissingDependencyError
from msa_train.interop.backbones import gguf_tokenizer
from msa_train.interop.backbones.backbone import FORMS, PretrainedBackbone, StoredWeight
from msa_train.model.rope import RopeScaling

QUANTISED = (
    "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
)  # fmt: skip
_ROWS = 4096  # dequantised at once: their temporaries are several times as large

# Published names of a layer by those of llama.cpp; both with `.weight` or `.bias`.
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"},
    "attn_output": "self_attn.o_proj",
    **{f"attn_{name}_norm": f"self_attn.{name}_norm" for name in "qk"},
    **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_FREQUENCIES = "rope_freqs.weight"  # divisors of the frequencies: how llama3 scaling is stored
_IN_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")

# Keys under the architecture's name -> keys of config.json.
_GEOMETRY = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
}
_SCALING = {
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
_HARMLESS = {"vocab_size", "rope.scaling.finetuned"}
# Keys whose other values would change what is computed.
_SUPPORTED = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scaling.type": ("none", "yarn"),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
}


class GGUFFile(PretrainedBackbone):
    """A GGUF file of one of the architectures, in one part.

    Raises CheckpointError for what is no such file, broken, or not computed here, by its key;
    MissingDependencyError without the `gguf` library.
    """

    def __init__(self, path: Path):
        self._path = path
        fields, tensors = _contents(path)
        self._kind = _field(fields, "general.architecture", path)
        self._tensors = {each.name: each for each in tensors}
        divisors = self._tensors.pop(_FREQUENCIES, None)
        self.config = self._config(fields, None if divisors is None else divisors.data)
        self._names = {name: self._published(name) for name in self._tensors}
        self.stored = {self._names[name]: self._described(name) for name in self._tensors}
        self.name = fields.get("general.name") or path.stem
        self.licence = fields.get("general.license")
        self.tokenizer = gguf_tokenizer.tokenizer_json(fields, path)
        self.settings = gguf_tokenizer.settings(fields)
        self.chat_template = fields.get("tokenizer.chat_template")

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._tensors.items():
            published = self._names[name]
            numbers = _numbers(tensor).to(self.stored[published].dtype)
            yield published, self._halves_apart(published, numbers)

    def _config(self, fields: Mapping[str, Any], divisors: np.ndarray | None) -> dict[str, Any]:
        """What a config.json says, out of the keys under the architecture's name."""
        prefix = f"{self._kind}."
        given = {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}
        if fields.get("split.count", 1) > 1:
            raise CheckpointError(f"{self._path} is one of several parts: merge them first")
        self._refuse(given)
        config = {ours: _short(given[key]) for key, ours in _GEOMETRY.items() if key in given}
        config["model_type"] = self._kind
        config["vocab_size"] = int(self._tensor("token_embd.weight").shape[1])
        config["tie_word_embeddings"] = "output.weight" not in self._tensors
        if given.get("rope.scaling.type") == "yarn":
            scaling = {ours: _short(given[k]) for k, ours in _SCALING.items() if k in given}
            config["rope_scaling"] = {"rope_type": "yarn", **scaling}
        if divisors is not None:
            config["rope_scaling"] = self._llama3(divisors, config)
        return config

    def _refuse(self, given: Mapping[str, Any]) -> None:
        """What would be computed wrongly."""
        size = given.get("attention.key_length")
        if size is None and "embedding_length" in given and "attention.head_count" in given:
            size = given["embedding_length"] // np.max(given["attention.head_count"])
        allowed = {
            **_SUPPORTED, "rope.dimension_count": (size,), "attention.value_length": (size,),
        }  # fmt: skip
        for key, value in given.items():
            if key in allowed:
                if value not in allowed[key]:
                    raise CheckpointError(
                        f"{self._path} has {self._kind}.{key} {value!r}: supported is only "
                        f"{' or '.join(map(repr, allowed[key]))}"
                    )
            elif key not in _GEOMETRY.keys() | _SCALING.keys() | _HARMLESS:
                raise CheckpointError(
                    f"{self._path} has the unknown key {self._kind}.{key} ({value!r:.60}), which "
                    "may change what is computed"
                )
            elif isinstance(value, list):
                raise CheckpointError(
                    f"{self._path} has {self._kind}.{key} by layer: only equal layers are supported"
                )

    def _llama3(self, divisors: np.ndarray, config: Mapping[str, Any]) -> dict[str, Any]:
        """Llama 3's scaling, where these are its divisors: the file does not name its settings."""
        pairs, theta = len(divisors), config["rope_theta"]
        plain = theta ** -(torch.arange(pairs, dtype=torch.float32) / pairs)
        found = RopeScaling("llama3", _short(divisors.max()), 8192)
        expected = plain / found.frequencies(plain, theta)
        if not torch.allclose(expected, torch.from_numpy(divisors.copy()), rtol=1e-4):
            raise CheckpointError(
                f"{self._path} has {_FREQUENCIES} that are not those of Llama 3 (trained at 8,192 "
                "tokens, low_freq_factor 1, high_freq_factor 4): this scaling is not supported"
            )
        return found.to_published()

    def _tensor(self, name: str) -> Any:
        if name not in self._tensors:
            raise CheckpointError(f"{self._path} has no weight {name}: is it a language model?")
        return self._tensors[name]

    def _published(self, name: str) -> str:
        if name in _OUTSIDE:
            return _OUTSIDE[name]
        found = _IN_LAYER.fullmatch(name)
        if not found or found[2] not in _LAYER:
            raise CheckpointError(
                f"{self._path} has the weight {name}, which {self._kind} has not here: what it "
                "does would be left out"
            )
        return f"model.layers.{found[1]}.{_LAYER[found[2]]}.{found[3]}"

    def _described(self, name: str) -> StoredWeight:
        tensor = self._tensors[name]
        form = tensor.tensor_type.name
        if form not in FORMS and form not in QUANTISED:
            raise CheckpointError(
                f"{self._path} has {name} in {form}: supported are "
                f"{', '.join([*FORMS, *QUANTISED])}"
            )
        shape = tuple(int(size) for size in reversed(tensor.shape))
        return StoredWeight(shape, FORMS.get(form, torch.float32), form)

    def _halves_apart(self, name: str, weight: Tensor) -> Tensor:
        """Rows of a llama's q and k heads as published: llama.cpp rotates neighbours, so its files
        have row i of a head's first half beside row i of its second."""
        heads = {"q": "num_attention_heads", "k": "num_key_value_heads"}
        side = re.search(r"\.([qk])_proj\.", name)
        if self._kind != "llama" or not side:
            return weight
        count = self.config.get(heads[side[1]], self.config["num_attention_heads"])
        return weight.unflatten(0, (count, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def _contents(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """Fields and tensors; the numbers of these stay on disk."""
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{path} is read with the package 'gguf': pip install 'msa-train[backbone]'"
        ) from error
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise CheckpointError(
                f"{path} begins with {magic!r}, so it is no GGUF file: give one, or a folder with "
                "config.json, safetensors and tokenizer.json"
            )
        reader = GGUFReader(path)
        return {key: field.contents() for key, field in reader.fields.items()}, reader.tensors
    except CheckpointError:
        raise
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): is it cut off?") from error


def _field(fields: Mapping[str, Any], key: str, path: Path) -> Any:
    if key not in fields:
        raise CheckpointError(f"{path} has no field {key}: is it a language model?")
    return fields[key]


def _short(number: Any) -> Any:
    """A float32 as the shortest decimal number that it stands for: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(number))) if isinstance(number, float | np.floating) else number


def _numbers(tensor: Any) -> Tensor:
    """Float32, of the published shape."""
    from gguf import dequantize

    shape = [int(size) for size in reversed(tensor.shape)]
    unpack = partial(dequantize, qtype=tensor.tensor_type)
    if len(shape) == 1:
        return torch.from_numpy(np.array(unpack(tensor.data), np.float32)).reshape(shape)
    found = torch.empty(shape)
    for start in range(0, shape[0], _ROWS):
        rows = np.array(unpack(tensor.data[start : start + _ROWS]), np.float32)
        found[start : start + _ROWS] = torch.from_numpy(rows.reshape(-1, shape[1]))
    return found
