"""The published training pass, densely: a padded batch to losses. See published_oracle.py."""

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
    ranking_loss,
    rms,
    route,
    router_projections,
)


@dataclass
class Trained:
    """What one training forward gives: `tensors` of outputs.safetensors, and the choices."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    selected: dict[str, list] = field(default_factory=dict)
    margin: dict[str, list] = field(default_factory=dict)
    closest: float = math.inf


def training_forward(s: Settings, w: Weights, inputs: Weights, aux_labels: list) -> Trained:
    """The training pass over a padded batch; losses keep their graph."""
    doc_ids, real = inputs["doc_ids"], inputs["attention_mask"].bool()
    batch, length = doc_ids.shape
    order = torch.arange(length)
    causal = order[:, None] >= order[None, :]
    members, numbers = zip(
        *(chunk_members(doc_ids[b], real[b], s.chunk) for b in range(batch)), strict=True
    )
    out, losses = Trained(), []
    x = w["model.embed_tokens.weight"][inputs["input_ids"]]
    for layer in range(s.layers):
        out.tensors[f"hidden_in.{layer}"] = x
        h = rms(x, w[f"model.layers.{layer}.input_layernorm.weight"], s.config["rms_norm_eps"])
        q, k, v = project(s, w, layer, h, inputs["position_ids"])
        routes = layer in s.router_layers
        if routes:
            rq, rk = router_projections(s, w, layer, h) if s.decoupled else (q, k)
        rows, per_sample = [], []
        for b in range(batch):
            doc = doc_ids[b]
            same = torch.where(doc[:, None] > 0, doc[:, None] == doc[None, :], doc[None, :] <= 0)
            mask = causal & same & real[b][:, None] & real[b][None, :]
            mask |= torch.eye(length, dtype=torch.bool)  # rows of padding need something
            keys, values = k[b], v[b]
            if routes:
                pk, pv, prk = (pool(t, members[b]) for t in (keys, values, rk[b]))
                asked = rq[b][:, real[b] & (doc == 0)]
                if "INFONCE" in s.msa["aux_loss_method"]:
                    asked, prk = F.normalize(asked, dim=-1), F.normalize(prk, dim=-1)
                scale = 1.0 if s.decoupled else s.heads[2] ** -0.5
                chunks, documents = route(s, asked, prk, numbers[b], scale)
                chosen = best(documents, s.top_k)
                wanted = torch.tensor([n in chosen for n in numbers[b].tolist()])
                first = members[b].float().argmax(1)
                sees = wanted[None] & (first[None] < order[:, None])
                sees = sees & ((doc <= 0) & real[b])[:, None]
                mask = torch.cat([mask, sees], 1)
                keys, values = torch.cat([keys, pk], 1), torch.cat([values, pv], 1)
                per_sample.append((chunks, documents, chosen, prk, pk, pv))
                if layer >= s.layers // 2:
                    positive = torch.tensor(aux_labels[b], dtype=torch.bool)
                    stacked = torch.stack(list(documents.values()))
                    method = s.msa["aux_loss_method"]
                    losses.append(ranking_loss(method, stacked, positive, w["temperature"]))
            rows.append(attend(q[b], keys, values, mask))
        x = finish_block(s, w, layer, x, torch.stack(rows))
        if routes:
            record_routing(s, out, layer, per_sample)
    final = rms(x, w["model.norm.weight"], s.config["rms_norm_eps"])
    logits = final @ head_weight(w).T
    lm = F.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    aux = torch.stack(losses).mean() if losses else torch.zeros(())
    out.tensors |= {"final_hidden": final, "lm_loss": lm, "aux_loss": aux}
    out.tensors["total_loss"] = lm + 0.1 * aux
    out.tensors["chunk_doc"] = torch.cat(numbers)
    sample_of = [torch.full_like(n, b) for b, n in enumerate(numbers)]
    out.tensors["chunk_sample"] = torch.cat(sample_of)
    return out


def record_routing(s: Settings, out: Trained, layer: int, per_sample: list) -> None:
    columns = 1 + max(max(documents) for _, documents, *_ in per_sample)
    widest = max(len(chunks) for chunks, *_ in per_sample)
    doc_scores = torch.full((len(per_sample), columns), float("-inf"))
    chunk_scores = torch.full((len(per_sample), widest), float("-inf"))
    selected, margin = [], []
    for b, (chunks, documents, chosen, *_) in enumerate(per_sample):
        chunk_scores[b, : len(chunks)] = chunks.detach()
        for number, score in documents.items():
            doc_scores[b, number] = score.detach()
        at_k, closest = margins(documents, s.top_k)
        selected.append(chosen)
        margin.append(at_k)
        out.closest = min(out.closest, closest)
    out.selected[str(layer)], out.margin[str(layer)] = selected, margin
    out.tensors |= {f"doc_scores.{layer}": doc_scores, f"chunk_scores.{layer}": chunk_scores}
    for name, place in (("router_k_pooled", 3), ("pooled_k", 4), ("pooled_v", 5)):
        pooled = torch.cat([sample[place].transpose(0, 1) for sample in per_sample])
        out.tensors[f"{name}.{layer}"] = pooled
