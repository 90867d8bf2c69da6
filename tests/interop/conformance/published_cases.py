"""Case directories in the conformance format, made by the dense oracle from a seed and a variant.

A variant is drawn again until its choices are clear of rounding: every gap between a selected
document and the next best, and every greedy argmax, is above MARGIN.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.interop.conformance.published_oracle import HEAD, Settings, Weights
from tests.interop.conformance.published_serving import answer, build_memory, serving_scale
from tests.interop.conformance.published_training import training_forward
from tests.interop.conformance.published_variants import Sample, Serving, Training

MARGIN = 2e-3
TAIL = 2  # template tokens after the question
START, USER, NEWLINE, END = 1, 4, 10, 2


def random_weights(config: dict, temperature: float, gen: torch.Generator) -> Weights:
    """Linear N(0, 1/fan_in), embeddings 0.5 N(0, 1), norms 1 + 0.1 N(0, 1)."""
    s = Settings(config)
    hidden, ffn, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    heads, groups, dim = s.heads

    def linear(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=gen) * columns**-0.5

    def norm(size: int) -> Tensor:
        return 1 + 0.1 * torch.randn(size, generator=gen)

    w = {
        "model.embed_tokens.weight": 0.5 * torch.randn(vocab, hidden, generator=gen),
        "model.norm.weight": norm(hidden),
        "temperature": torch.tensor(temperature),
    }
    if not config["tie_word_embeddings"]:
        w["lm_head.weight"] = linear(vocab, hidden)
    for layer in range(s.layers):
        at = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            w[f"{at}{name}.weight"] = norm(hidden)
        for name, size in (("q", heads), ("k", groups), ("v", groups)):
            w[f"{at}self_attn.{name}_proj.weight"] = linear(size * dim, hidden)
        w[f"{at}self_attn.o_proj.weight"] = linear(hidden, heads * dim)
        for name in ("q_norm", "k_norm"):
            w[f"{at}self_attn.{name}.weight"] = norm(dim)
        for name, shape in (
            ("gate", (ffn, hidden)),
            ("up", (ffn, hidden)),
            ("down", (hidden, ffn)),
        ):
            w[f"{at}mlp.{name}_proj.weight"] = linear(*shape)
        if layer in s.router_layers and s.decoupled:
            for name, size in (("q", heads), ("k", groups)):
                w[f"{at}self_attn.router_{name}_proj.0.weight"] = linear(size * dim, hidden)
    return w


def padded(rows: list[dict[str, Tensor]], left: bool, fill: dict[str, int]) -> Weights:
    length = max(len(row["doc_ids"]) for row in rows)
    out = {name: torch.full((len(rows), length), fill.get(name, 0)) for name in rows[0]}
    for b, row in enumerate(rows):
        for name, value in row.items():
            place = slice(length - len(value), None) if left else slice(0, len(value))
            out[name][b, place] = value
    return out


def training_row(sample: Sample, s: Settings, label_all: bool, gen) -> dict[str, Tensor]:
    doc_ids, positions = [-2] * HEAD, list(range(HEAD))
    for number, length in zip(sample.numbered, sample.docs, strict=True):
        doc_ids += [number] * length
        positions += range(length)
    after = [0] * sample.question + [-2] * TAIL + [-1] * sample.response
    doc_ids += after
    positions += range(HEAD + s.top_k, HEAD + s.top_k + len(after))
    ids = torch.randint(3, s.config["vocab_size"], (len(doc_ids),), generator=gen)
    labels = torch.where(torch.tensor(doc_ids) == -1, ids, -100)
    if label_all:
        labels = torch.cat([torch.tensor([-100]), ids[1:]])
    return {
        "input_ids": ids,
        "doc_ids": torch.tensor(doc_ids),
        "position_ids": torch.tensor(positions),
        "labels": labels,
        "attention_mask": torch.ones_like(ids),
    }


def write_training(variant: Training, root: Path) -> Path:
    """root/<name>: meta.json and inputs, weights, outputs, grads."""
    s = Settings(variant.config)
    aux = [[int(n in x.positives) for n in x.numbered] for x in variant.samples]
    for attempt in range(50):
        gen = torch.Generator().manual_seed(1000 * attempt + variant.seed)
        warmth = variant.temperature or s.msa["infonce_loss_temp"]
        w = random_weights(variant.config, warmth, gen)
        rows = [training_row(x, s, variant.label_all, gen) for x in variant.samples]
        inputs = padded(rows, variant.left_padded, {"labels": -100})
        for name, tensor in w.items():
            tensor.requires_grad_(name != "temperature")
        out = training_forward(s, w, inputs, aux)
        if out.closest > MARGIN:
            break
    else:
        raise AssertionError(f"{variant.name}: no clear draw")
    out.tensors["total_loss"].backward()
    meta = {
        "kind": "train",
        "seed": variant.seed,
        "batch_aux_labels": aux,
        "left_padded": variant.left_padded,
        "selected_docs": out.selected,
        "score_margin_at_k": out.margin,
        "params_without_grad": [name for name in w if w[name].grad is None],
        "weights_from": variant.name,
    }
    files = {
        "inputs": inputs,
        "weights": {name: tensor.detach() for name, tensor in w.items()},
        "outputs": out.tensors,
        "grads": {name: t.grad for name, t in w.items() if t.grad is not None},
    }
    return write_case(root / variant.name, variant.config, meta, files)


def memory_block(texts: tuple[int, ...], first: int, gen) -> dict[str, Tensor]:
    """Head and documents `<start>[g]. text[g]<end>`, one token for each character."""
    ids, doc_ids, positions = [START, USER, NEWLINE], [-2] * HEAD, list(range(HEAD))
    for index, length in enumerate(texts):
        text = torch.randint(97, 123, (length,), generator=gen).tolist()
        name = f"[{first + index}]"
        tokens = [START, *f"{name}. ".encode(), *text, *name.encode(), END]
        ids += tokens
        doc_ids += [index + 1] * len(tokens)
        positions += range(len(tokens))
    parts = {"input_ids": ids, "doc_ids": doc_ids, "position_ids": positions}
    return {name: torch.tensor(values) for name, values in parts.items()}


def prompt_row(question: int, s: Settings, gen) -> dict[str, Tensor]:
    ids = [*torch.randint(97, 123, (question,), generator=gen).tolist(), END, NEWLINE, START]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.ones(len(ids), dtype=torch.long),
        "doc_ids": torch.tensor([0] * question + [-2] * TAIL + [-1]),
        "position_ids": torch.arange(len(ids)) + HEAD + s.top_k,
    }


@torch.no_grad()
def write_serving(variant: Serving, root: Path) -> Path:
    """root/<name>: meta.json, memory, query; root/<name>_weights: the weights alone."""
    s = Settings(variant.config)
    firsts = [sum(map(len, variant.blocks[:i])) for i in range(len(variant.blocks))]
    for attempt in range(50):
        gen = torch.Generator().manual_seed(1000 * attempt + variant.seed)
        w = random_weights(variant.config, 0.1, gen)
        pairs = zip(variant.blocks, firsts, strict=True)
        blocks = [memory_block(texts, first, gen) for texts, first in pairs]
        rows = [prompt_row(question, s, gen) for question in variant.questions]
        prompt = padded(rows, True, {"input_ids": END, "position_ids": HEAD + s.top_k})
        memory = build_memory(s, w, blocks)
        out = answer(s, w, memory, prompt, variant.steps)
        if out.closest > MARGIN:
            break
    else:
        raise AssertionError(f"{variant.name}: no clear draw")
    source = f"{variant.name}_weights"
    (root / source).mkdir(parents=True)
    save_file(w, root / source / "weights.safetensors")
    meta = {
        "kind": "infer",
        "seed": variant.seed,
        "doc_top_k": s.top_k,
        "scaling_applied_to_router_q": serving_scale(s),
        "selected_docs_score_order": out.selected,
        "num_selected_chunks": out.chunks,
        "score_margin_at_k": out.margin,
        "stage1_blocks": [list(texts) for texts in variant.blocks],
        "steps": variant.steps,
        "weights_from": source,
    }
    for i, block in enumerate(blocks):
        memory.tensors |= {f"stage1.{i}.{name}": value for name, value in block.items()}
    files = {"memory": memory.tensors, "query": prompt | out.tensors}
    return write_case(root / variant.name, variant.config, meta, files)


def write_case(case: Path, config: dict, meta: dict, files: dict[str, Weights]) -> Path:
    case.mkdir(parents=True)
    shapes = {}
    for name, tensors in files.items():
        tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
        save_file(tensors, case / f"{name}.safetensors")
        if name not in ("weights", "grads"):
            shapes[name] = {
                key: [str(value.dtype).removeprefix("torch."), list(value.shape)]
                for key, value in tensors.items()
            }
    meta = {"case": case.name, "config": config, **meta, "tensors": shapes}
    (case / "meta.json").write_text(json.dumps(meta, indent=1))
    return case
