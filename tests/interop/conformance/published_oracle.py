"""The published arithmetic once more, densely: the second opinion of the conformance tests.

Written from the definitions of the conformance format alone (padded [B, T] with doc_ids, boolean
masks, every per-head score materialised) and sharing no code with the package, so that an error in
one is not an error in both. `published_training.py` and `published_serving.py` are its two passes,
`published_cases.py` turns them into case directories.

B batch, T tokens, H query heads, G key/value heads, D head dim, C chunks of one sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]
HEAD = 3  # tokens of the template before the documents


@dataclass(frozen=True)
class Settings:
    """What the definitions read from a published config."""

    config: dict

    @property
    def msa(self) -> dict:
        return self.config["msa_config"]

    @property
    def layers(self) -> int:
        return self.config["num_hidden_layers"]

    @property
    def heads(self) -> tuple[int, int, int]:
        c = self.config
        return c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]

    @property
    def router_layers(self) -> list[int]:
        written = self.msa["router_layer_idx"]
        if written == "all":
            return list(range(self.layers))
        return sorted(int(part) for part in written.split(","))

    @property
    def top_k(self) -> int:
        return self.msa["top_k_docs"] if "top_k_docs" in self.msa else self.msa["doc_top_k"]

    @property
    def chunk(self) -> int:
        return self.msa["pooling_kernel_size"]

    @property
    def decoupled(self) -> bool:
        return self.msa["decouple_router"]


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x [B, heads, T, D], positions [B, T]; the rotate-half form."""
    dim = x.shape[-1]
    inverse = theta ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angle = positions[:, None, :, None].float() * inverse
    angle = torch.cat([angle, angle], -1)
    half = torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1)
    return x * angle.cos() + half * angle.sin()


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, heads * D] -> [B, heads, T, D]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def project(s: Settings, w: Weights, layer: int, h: Tensor, positions: Tensor):
    """q [B, H, T, D], k, v [B, G, T, D]: normed and rotated."""
    name, c = f"model.layers.{layer}.self_attn.", s.config
    heads, groups, _ = s.heads
    q = split_heads(h @ w[name + "q_proj.weight"].T, heads)
    k = split_heads(h @ w[name + "k_proj.weight"].T, groups)
    v = split_heads(h @ w[name + "v_proj.weight"].T, groups)
    q = rms(q, w[name + "q_norm.weight"], c["rms_norm_eps"])
    k = rms(k, w[name + "k_norm.weight"], c["rms_norm_eps"])
    theta = c["rope_theta"]
    return rotate(q, positions, theta), rotate(k, positions, theta), v


def router_projections(s: Settings, w: Weights, layer: int, h: Tensor) -> tuple[Tensor, Tensor]:
    name = f"model.layers.{layer}.self_attn.router_"
    heads, groups, _ = s.heads
    queries = split_heads(h @ w[name + "q_proj.0.weight"].T, heads)
    return queries, split_heads(h @ w[name + "k_proj.0.weight"].T, groups)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """One sample: q [H, T, D], k, v [G, S, D], mask [T, S] -> [T, H * D]."""
    repeat = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    logits = logits.masked_fill(~mask, float("-inf"))
    return (logits.softmax(-1) @ v).transpose(0, 1).flatten(1)


def finish_block(s: Settings, w: Weights, layer: int, x: Tensor, attended: Tensor) -> Tensor:
    name = f"model.layers.{layer}."
    x = x + attended @ w[name + "self_attn.o_proj.weight"].T
    h = rms(x, w[name + "post_attention_layernorm.weight"], s.config["rms_norm_eps"])
    gate = F.silu(h @ w[name + "mlp.gate_proj.weight"].T)
    return x + (gate * (h @ w[name + "mlp.up_proj.weight"].T)) @ w[name + "mlp.down_proj.weight"].T


def head_weight(w: Weights) -> Tensor:
    return w["lm_head.weight"] if "lm_head.weight" in w else w["model.embed_tokens.weight"]


def chunk_members(doc_ids: Tensor, real: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """One sample: ([C, T] bool: the tokens of each chunk, [C] document numbers)."""
    rows, numbers = [], []
    for number in sorted(set(doc_ids[real & (doc_ids > 0)].tolist())):
        tokens = torch.nonzero(real & (doc_ids == number))[:, 0]
        for start in range(0, len(tokens), size):
            row = torch.zeros_like(real)
            row[tokens[start : start + size]] = True
            rows.append(row)
            numbers.append(number)
    return torch.stack(rows), torch.tensor(numbers)


def pool(x: Tensor, members: Tensor) -> Tensor:
    """x [G, T, D], members [C, T] -> [G, C, D]: the mean of each chunk's tokens."""
    return torch.stack([x[:, row].mean(1) for row in members], 1)


def reduce(x: Tensor, dim: int, how: str) -> Tensor:
    if how == "last":
        return x.select(dim, -1)
    return x.amax(dim) if how == "max" else x.mean(dim)


def route(s: Settings, rq: Tensor, rk: Tensor, numbers: Tensor, scale: float):
    """rq [H, Tq, D] question rows, rk [G, C, D] -> chunk scores [C], {document number: score}."""
    rk = rk.repeat_interleave(rq.shape[0] // rk.shape[0], 0)
    scores = scale * (rq @ rk.transpose(-1, -2))  # [H, Tq, C]
    scores = reduce(scores, 0, s.msa["head_reduce_method"])
    scores = reduce(scores, 0, s.msa["query_reduce_method"])
    documents = {
        number: reduce(scores[numbers == number], 0, s.msa["chunk_reduce_method"])
        for number in sorted(set(numbers.tolist()))
    }
    return scores, documents


def best(documents: dict[int, Tensor], k: int) -> list[int]:
    return sorted(documents, key=lambda number: (-documents[number].item(), number))[:k]


def margins(documents: dict[int, Tensor], k: int) -> tuple[float | None, float]:
    """(gap at the top-k boundary or None, smallest gap between neighbours down to it)."""
    order = sorted((score.item() for score in documents.values()), reverse=True)
    gaps = [a - b for a, b in pairwise(order)][:k]
    return (gaps[k - 1] if len(gaps) >= k else None), min(gaps, default=math.inf)


def ranking_loss(method: str, scores: Tensor, positive: Tensor, temperature: Tensor) -> Tensor:
    """scores [n], positive [n] bool: the loss of one sample in one layer; 0 without positives."""
    scores = scores / temperature.clamp(0.001, 0.5)
    terms = []
    for i in torch.nonzero(positive)[:, 0].tolist():
        if method == "INFONCE":
            rivals = scores
        else:
            assert method == "INFONCE_DECOUPLE"
            rivals = torch.cat([scores[i : i + 1], scores[~positive]])
        terms.append(scores[i] - torch.logsumexp(rivals, 0))
    return -torch.stack(terms).mean() if terms else torch.zeros(())
