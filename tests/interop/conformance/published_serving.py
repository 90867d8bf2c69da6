"""The published serving pass, densely: pooled memory, then a prompt that is answered greedily.

The prompt and everything generated so far is run again in full for each token; only the choice of
documents is kept from the first time. See published_oracle.py for the point of this file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.interop.conformance.published_oracle import (
    Settings,
    Weights,
    attend,
    best,
    chunk_members,
    finish_block,
    head_weight,
    margins,
    pool,
    project,
    rms,
    route,
    router_projections,
)


@dataclass
class Memory:
    """Stage 1: `tensors` as in memory.safetensors and the chunks' documents from 0, [C]."""

    tensors: dict[str, Tensor]
    documents: Tensor

    def router_keys(self, layer: int) -> Tensor:
        name = f"pooled_router_k.{layer}"
        return self.tensors.get(name, self.tensors[f"pooled_k.{layer}"])


@dataclass
class Served:
    """Stage 2: `tensors` as in query.safetensors, and the choices."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    selected: dict[str, list] = field(default_factory=dict)
    chunks: dict[str, list] = field(default_factory=dict)
    margin: dict[str, list] = field(default_factory=dict)
    closest: float = math.inf


def serving_scale(s: Settings) -> float:
    exact = s.msa["aux_loss_method"] == "INFONCE" and s.decoupled
    return 1.0 if exact else s.heads[2] ** -0.5


def encode_block(s: Settings, w: Weights, block: Weights) -> tuple[dict, Tensor]:
    """One stage-1 block [T] -> pooled and template tensors, and the chunks' document numbers."""
    doc, positions = block["doc_ids"], block["position_ids"][None]
    members, numbers = chunk_members(doc, torch.ones_like(doc, dtype=torch.bool), s.chunk)
    mask = (doc[:, None] == doc[None, :]).tril()
    out: dict[str, Tensor] = {}
    x = w["model.embed_tokens.weight"][block["input_ids"]][None]
    for layer in range(s.layers):
        h = rms(x, w[f"model.layers.{layer}.input_layernorm.weight"], s.config["rms_norm_eps"])
        q, k, v = project(s, w, layer, h, positions)
        out[f"template_k.{layer}"], out[f"template_v.{layer}"] = (
            t[0][:, doc == -2] for t in (k, v)
        )
        if layer in s.router_layers:
            out[f"pooled_k.{layer}"], out[f"pooled_v.{layer}"] = (
                pool(t[0], members) for t in (k, v)
            )
            keys = out[f"pooled_k.{layer}"]
            if s.decoupled:
                keys = pool(router_projections(s, w, layer, h)[1][0], members)
            normalised = s.msa["aux_loss_method"] == "INFONCE"
            if normalised:
                keys = F.normalize(keys, dim=-1)
            if s.decoupled or normalised:
                out[f"pooled_router_k.{layer}"] = keys
        x = finish_block(s, w, layer, x, attend(q[0], k[0], v[0], mask)[None])
    return out, numbers


def build_memory(s: Settings, w: Weights, blocks: list[Weights]) -> Memory:
    tensors: dict[str, Tensor] = {}
    documents, before = [], 0
    for block in blocks:
        part, numbers = encode_block(s, w, block)
        for name, value in part.items():
            if name.startswith("pooled"):
                value = torch.cat([tensors[name], value], 1) if name in tensors else value
                tensors[name] = value
            else:
                tensors.setdefault(name, value)
        documents.append(numbers - 1 + before)
        before += int(numbers.max())
    found = torch.cat(documents)
    tensors["chunk_doc"] = found + 1
    return Memory(tensors, found)


def prompt_forward(
    s: Settings, w: Weights, memory: Memory, prompt: Weights, served: Served
) -> Tensor:
    """Final hidden [B, T, hidden]; routes when `served` holds no choice yet."""
    real, doc = prompt["attention_mask"].bool(), prompt["doc_ids"]
    batch, length = doc.shape
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    m = memory.tensors
    x = w["model.embed_tokens.weight"][prompt["input_ids"]]
    for layer in range(s.layers):
        h = rms(x, w[f"model.layers.{layer}.input_layernorm.weight"], s.config["rms_norm_eps"])
        q, k, v = project(s, w, layer, h, prompt["position_ids"])
        routes = layer in s.router_layers
        if routes and str(layer) not in served.selected:
            rq = router_projections(s, w, layer, h)[0] if s.decoupled else q
            if s.msa["aux_loss_method"] == "INFONCE":
                rq = F.normalize(rq, dim=-1)
            choose(s, memory, layer, rq, real & (doc == 0), served)
        rows = []
        for b in range(batch):
            mask = (causal & real[b][None]) | torch.eye(length, dtype=torch.bool)
            template = m[f"template_k.{layer}"], m[f"template_v.{layer}"]
            keys = [template[0], k[b]]
            values = [template[1], v[b]]
            seen = torch.ones(length, template[0].shape[1], dtype=torch.bool)
            masks = [seen, mask]
            if routes:
                chosen = served.selected[str(layer)][b]
                wanted = torch.tensor([n in chosen for n in memory.documents.tolist()])
                keys.append(m[f"pooled_k.{layer}"])
                values.append(m[f"pooled_v.{layer}"])
                masks.append(wanted[None].expand(length, -1))
            rows.append(attend(q[b], torch.cat(keys, 1), torch.cat(values, 1), torch.cat(masks, 1)))
        x = finish_block(s, w, layer, x, torch.stack(rows))
    return rms(x, w["model.norm.weight"], s.config["rms_norm_eps"])


def choose(
    s: Settings, memory: Memory, layer: int, rq: Tensor, asks: Tensor, served: Served
) -> None:
    """Score and select for one layer; rq [B, H, T, D], asks [B, T]."""
    name, total = str(layer), int(memory.documents.max()) + 1
    scores, tops = [], []
    for table in (served.selected, served.chunks, served.margin):
        table[name] = []
    for b in range(len(rq)):
        _, documents = route(
            s, rq[b][:, asks[b]], memory.router_keys(layer), memory.documents, serving_scale(s)
        )
        chosen = best(documents, s.top_k)
        at_k, closest = margins(documents, s.top_k)
        served.closest = min(served.closest, closest)
        served.selected[name].append(chosen)
        served.chunks[name].append(sum(n in chosen for n in memory.documents.tolist()))
        served.margin[name].append(at_k)
        scores.append(torch.stack([documents[n] for n in range(total)]))
        tops.append(torch.stack([documents[n] for n in chosen]))
    served.tensors |= {
        f"router_q.{layer}": rq,
        f"doc_scores.{layer}": torch.stack(scores),
        f"top_scores.{layer}": torch.stack(tops),
    }


def answer(s: Settings, w: Weights, memory: Memory, prompt: Weights, steps: int) -> Served:
    """Greedy decoding of `steps` tokens after the padded prompt [B, Tq]."""
    served, so_far = Served(), dict(prompt)
    logits, tokens, positions = [], [], []
    for step in range(steps):
        final = prompt_forward(s, w, memory, so_far, served)
        if step == 0:
            served.tensors["prompt_final_hidden"] = final
        logits.append(final[:, -1] @ head_weight(w).T)
        tokens.append(logits[-1].argmax(-1))
        positions.append(so_far["position_ids"][:, -1])
        runner_up = logits[-1].topk(2, -1).values
        served.closest = min(served.closest, (runner_up[:, 0] - runner_up[:, 1]).min().item())
        following = {
            "input_ids": tokens[-1],
            "position_ids": positions[-1] + 1,
            "attention_mask": torch.ones_like(tokens[-1]),
            "doc_ids": torch.full_like(tokens[-1], -1),
        }
        so_far = {name: torch.cat([so_far[name], following[name][:, None]], 1) for name in so_far}
    served.tensors |= {
        "logits": torch.stack(logits),
        "step_tokens": torch.stack(tokens),
        "step_positions": torch.stack(positions),
        "step_attention": torch.ones_like(torch.stack(tokens)),
    }
    return served
