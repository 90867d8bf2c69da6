"""Small random models of transformers, saved as folders and as GGUF files."""

import json

import gguf
import numpy as np
import torch
import transformers

from tests.data_pipeline.tokenizer.test_huggingface import trained

ROWS = 512  # of the embedding: more than the tokenizer has tokens
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
NINE = {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72}
FOUR = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}

# name -> family, settings, and the rotation.
CASES = {
    "llama": ("Llama", NINE, {}),
    "llama-llama3": ("Llama", {**NINE, "tie_word_embeddings": True}, LLAMA3),
    "qwen2": ("Qwen2", {**NINE, "tie_word_embeddings": True}, {}),
    "qwen2-yarn": ("Qwen2", FOUR, YARN),
    "qwen3": ("Qwen3", {**FOUR, "head_dim": 16, "tie_word_embeddings": True}, {}),
    "qwen3-yarn": ("Qwen3", {**NINE, "head_dim": 8}, {**YARN, "attention_factor": 1.3}),
}


def random_model(case: str):
    """In float32; every norm and bias is drawn, so that each takes part."""
    family, settings, rotation = CASES[case]
    config = getattr(transformers, f"{family}Config")(
        num_hidden_layers=4, intermediate_size=48, vocab_size=ROWS, rms_norm_eps=1e-5,
        max_position_embeddings=64, rope_parameters={"rope_theta": 1e4, **rotation}, **settings,
    )  # fmt: skip
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(len(case))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.3 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(noise * scale + name.endswith("norm.weight"))
    return model


def save(model, folder, tokenizer=None, **how):
    model.save_pretrained(folder, **how)
    (folder / "tokenizer.json").write_bytes(tokenizer or trained())
    return folder


def logits_of(model, tokens, positions=None):
    """[N, vocabulary] of one sequence."""
    with torch.no_grad():
        return model(tokens[None], position_ids=positions).logits[0]


_LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}  # fmt: skip


def gguf_name(name: str) -> str:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{_LAYER[part]}.{kind}"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp orders those of a llama's q and k: row by row of a head, one of each
    half."""
    found = np.empty_like(weight)
    size = len(weight) // heads
    for head in range(heads):
        for i in range(size // 2):
            for half in (0, 1):
                found[head * size + 2 * i + half] = weight[head * size + half * size // 2 + i]
    return found


def tokenizer_fields(data: bytes) -> dict:
    """Tokens, their types and merges of a tokenizer.json, as a GGUF file has them."""
    made = json.loads(data)
    tokens = {i: token for token, i in made["model"]["vocab"].items()}
    types = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    for added in made["added_tokens"]:
        tokens[added["id"]] = added["content"]
        special = added["special"]
        types[added["id"]] = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    merges = [each if isinstance(each, str) else " ".join(each) for each in made["model"]["merges"]]
    order = sorted(tokens)
    return {
        "tokens": [tokens[i] for i in order], "types": [types[i] for i in order], "merges": merges,
    }  # fmt: skip


def write_gguf(model, path, kind=None, changed=None, tokenizer=None, pre="gpt-2"):
    """A GGUF file of a model; kind: of its matrices. changed: keys, None to leave one out."""
    config = model.config
    family = config.model_type
    writer = gguf.GGUFWriter(path, family)
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    keys = {
        "general.name": "a small model", "general.license": "apache-2.0",
        f"{family}.block_count": config.num_hidden_layers,
        f"{family}.context_length": config.max_position_embeddings,
        f"{family}.embedding_length": config.hidden_size,
        f"{family}.feed_forward_length": config.intermediate_size,
        f"{family}.attention.head_count": config.num_attention_heads,
        f"{family}.attention.head_count_kv": config.num_key_value_heads,
        f"{family}.attention.key_length": head_dim,
        f"{family}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{family}.rope.freq_base": config.rope_parameters["rope_theta"],
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.eos_token_id": 0, "tokenizer.chat_template": "{{ messages }}",
        **(changed or {}),
    }  # fmt: skip
    for key, value in keys.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    fields = tokenizer_fields(tokenizer or trained())
    writer.add_token_list(fields["tokens"])
    writer.add_token_types(fields["types"])
    writer.add_token_merges(fields["merges"])
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        _add(writer, gguf_name(name), _as_llama_cpp(name, weight.numpy(), config), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _as_llama_cpp(name, weight, config):
    if config.model_type == "llama" and ".q_proj" in name:
        return interleaved(weight, config.num_attention_heads)
    if config.model_type == "llama" and ".k_proj" in name:
        return interleaved(weight, config.num_key_value_heads)
    return weight


def _add(writer, name, weight, kind):
    if kind is None or weight.ndim == 1:
        writer.add_tensor(name, weight)
    else:
        packed = quantised(weight, kind)
        raw = None if packed.dtype in (np.float16, np.float32) else kind
        writer.add_tensor(name, packed, raw_dtype=raw)


def quantised(weight: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """By gguf; of K-quants, which it only reads, any bytes whose scales are finite."""
    try:
        return gguf.quantize(weight, kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape = (len(weight), weight.shape[1] // block * size)
        return np.random.default_rng(0).integers(0, 0x3C, shape, dtype=np.uint8)
