"""The published formulations, written anew from what they compute (SPEC sections 2 and 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def document_scores(query: Tensor, keys: Tensor, document: Tensor, documents: int) -> Tensor:
    """Per-head scores materialised: mean over heads, max over tokens, max over a document's chunks.

    query [1, G, H/G, T, D], keys [1, G, 1, D, C], document [C] -> [1, n].
    """
    scores = torch.matmul(query, keys).flatten(1, 2).mean(1).amax(1)
    out = scores.new_full((1, documents), -torch.inf)
    return out.scatter_reduce(1, document[None], scores, "amax")


def chunk_means(x: Tensor, token_cu: Tensor) -> Tensor:
    """A running sum over the whole block in float32, then differences. [N, F] -> [C, F]."""
    total = F.pad(x.float().cumsum(0), (0, 0, 1, 0))
    return ((total[token_cu[1:]] - total[token_cu[:-1]]) / token_cu.diff()[:, None]).to(x.dtype)


def gathered_attention(
    q: Tensor, k: Tensor, v: Tensor, pooled_k: Tensor, pooled_v: Tensor, index: Tensor, scale: float
) -> Tensor:
    """Selected chunks copied per context and concatenated before its own keys, heads repeated.

    q [m, t, H, D], k, v [m, t, G, D], pooled [C, G, D], index [m, s] -> [m, t, H, D].
    """
    t, heads = q.shape[1:3]
    keys, values = torch.cat([pooled_k[index], k], 1), torch.cat([pooled_v[index], v], 1)
    repeat = heads // k.shape[2]
    keys, values = (x.repeat_interleave(repeat, 2).transpose(1, 2) for x in (keys, values))
    seen = torch.ones(t, index.shape[1] + t, dtype=torch.bool, device=q.device)
    seen[:, index.shape[1] :] = seen[:, index.shape[1] :].tril()
    logits = q.transpose(1, 2) @ keys.mT * scale
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights @ values).transpose(1, 2)
