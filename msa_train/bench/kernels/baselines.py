"""What ours is compared with: the published formulations, and what other libraries offer.

The former are written anew from what they compute (SPEC sections 2 and 6); the latter are there
where they are installed and can do the work.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Peers = dict[str, Callable[[], Tensor]]


def published_document_scores(
    query: Tensor, keys: Tensor, document: Tensor, documents: int
) -> Tensor:
    """Per-head scores materialised: mean over heads, max over tokens, max over a document's chunks.

    query [1, G, H/G, T, D], keys [1, G, 1, D, C], document [C] -> [1, n].
    """
    scores = torch.matmul(query, keys).flatten(1, 2).mean(1).amax(1)
    out = scores.new_full((1, documents), -torch.inf)
    return out.scatter_reduce(1, document[None], scores, "amax")


def published_chunk_means(x: Tensor, token_cu: Tensor) -> Tensor:
    """A running sum over the whole block in float32, then differences. [N, F] -> [C, F]."""
    total = F.pad(x.float().cumsum(0), (0, 0, 1, 0))
    return ((total[token_cu[1:]] - total[token_cu[:-1]]) / token_cu.diff()[:, None]).to(x.dtype)


def published_attention(
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


def causal_attention(states: list[Tensor], cu: Tensor, scale: float) -> Peers:
    """Causal attention inside each document: q [N, H, D], k and v [N, G, D], cu [n+1]."""
    lengths = cu.diff().tolist()
    peers = {"sdpa, padded" if len(set(lengths)) > 1 else "sdpa, equal lengths": _padded}
    if cu.is_cuda:  # on a CPU nested tensors take no causal mask, and flex has no backward pass
        peers |= {"sdpa, nested": _nested, "flex": _flex}
    if importlib.util.find_spec("flash_attn"):
        peers["flash-attn"] = _flash
    return _able({name: partial(make, states, cu, lengths, scale) for name, make in peers.items()})


def gathered_attention(
    own: list[Tensor], pooled: list[Tensor], index: Tensor, scale: float
) -> Peers:
    """Contexts over their selected chunks and their own tokens, by attention that reads no chunk
    where it lies: selected ones are copied in front of each context's own keys.

    own: packed q [m t, H, D], k, v [m t, G, D]; pooled K, V [C, G, D]; index [m, s].
    """
    contexts, entries = index.shape
    tokens = len(own[0]) // contexts

    def states() -> tuple[Tensor, Tensor, Tensor]:
        """q [m, t, H, D]; k and v [m, s + t, G, D]."""
        q, *narrow = (x.unflatten(0, (contexts, tokens)) for x in own)
        k, v = (torch.cat([x[index], y], 1) for x, y in zip(pooled, narrow, strict=True))
        return q, k, v

    peers = {"sdpa, gathered": _gathered_sdpa}
    if index.is_cuda:  # on a CPU flex has no backward pass
        peers["flex, gathered"] = _gathered_flex
    if importlib.util.find_spec("flash_attn"):
        peers["flash-attn, gathered"] = _gathered_flash
    return _able({name: partial(make, states, entries, scale) for name, make in peers.items()})


def late_interaction(query: Tensor, keys: Tensor, chunk_cu: Tensor) -> Peers:
    """Scores of one question [T, V] for packed documents [C, V]. They sum over tokens where ours
    takes the largest: the same cost."""
    peers: dict[str, Callable[[], Callable[[], Tensor]]] = {}
    longest = int(chunk_cu.diff().max())
    cu, whole = chunk_cu.int(), chunk_cu.new_tensor([0, len(query)]).int()
    narrow = query.to(keys.dtype)
    if importlib.util.find_spec("late_interaction_kernels"):
        from late_interaction_kernels.varlen import maxsim_varlen

        sizes = len(query), longest
        peers["late-interaction-kernels"] = lambda: partial(
            maxsim_varlen, narrow, keys, whole, cu, *sizes
        )
    if importlib.util.find_spec("flash_maxsim"):
        from flash_maxsim import flash_maxsim_packed

        half = keys.half()  # it computes in float16 alone
        peers["flash-maxsim"] = lambda: partial(
            flash_maxsim_packed, narrow.half(), half, cu, longest
        )
    return _able(peers)


def _able(peers: dict[str, Callable[[], Callable[[], Tensor]]]) -> Peers:
    """Those that can be made and run here, forward and (where there are inputs) backward; others
    are named."""
    able = {}
    for name, make in peers.items():
        try:
            run = make()
            out = run()
            if out.requires_grad:
                out.sum().backward()
        except Exception as error:  # libraries raise anything where they cannot go on
            reason = str(error).strip().partition("\n")[0]
            print(f"{name} is left out: {type(error).__name__}: {reason}", file=sys.stderr)
        else:
            able[name] = run
    return able


def _padded(states: list[Tensor], cu: Tensor, lengths: list[int], scale: float):
    """torch's attention over documents padded to the longest."""
    place = torch.arange(max(lengths), device=cu.device)
    real = place < cu.diff()[:, None]
    rows = (cu[:-1, None] + place).clamp(max=sum(lengths) - 1)
    ragged = not bool(real.all())

    def run() -> Tensor:
        batch = (x[rows] if ragged else x.unflatten(0, rows.shape) for x in states)
        q, k, v = (x.transpose(1, 2) for x in batch)
        out = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True, is_causal=True)
        out = out.transpose(1, 2)
        return out[real] if ragged else out.flatten(0, 1)

    return run


def _nested(states: list[Tensor], cu: Tensor, lengths: list[int], scale: float):
    group = states[0].shape[1] // states[1].shape[1]

    def run() -> Tensor:
        heads = (states[0], *(x.repeat_interleave(group, 1) for x in states[1:]))
        q, k, v = (
            torch.nested.nested_tensor_from_jagged(
                x, cu, min_seqlen=min(lengths), max_seqlen=max(lengths)
            ).transpose(1, 2)
            for x in heads
        )
        out = F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=True)
        return out.transpose(1, 2).values()

    return run


def _flex(states: list[Tensor], cu: Tensor, lengths: list[int], scale: float):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    total = sum(lengths)
    document = torch.repeat_interleave(torch.arange(len(lengths), device=cu.device), cu.diff())

    def seen(batch, head, i, j):
        return (document[i] == document[j]) & (i >= j)

    mask = create_block_mask(seen, None, None, total, total, device=str(cu.device))
    compiled = torch.compile(flex_attention)

    def run() -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in states)
        out = compiled(q, k, v, block_mask=mask, scale=scale, enable_gqa=True)
        return out[0].transpose(0, 1)

    return run


def _flash(states: list[Tensor], cu: Tensor, lengths: list[int], scale: float):
    from flash_attn import flash_attn_varlen_func

    bounds = (cu.int(), cu.int(), max(lengths), max(lengths))
    return lambda: flash_attn_varlen_func(*states, *bounds, softmax_scale=scale, causal=True)


States = Callable[[], tuple[Tensor, Tensor, Tensor]]


def _gathered_sdpa(states: States, entries: int, scale: float) -> Callable[[], Tensor]:
    def run() -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in states())
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(entries)
        out = F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)

    return run


def _gathered_flex(states: States, entries: int, scale: float) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(batch, head, i, j):
        return j <= i + entries

    q, k, _ = states()
    mask = create_block_mask(seen, None, None, q.shape[1], k.shape[1], device=str(q.device))
    compiled = torch.compile(flex_attention)

    def run() -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in states())
        out = compiled(q, k, v, block_mask=mask, scale=scale, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)

    return run


def _gathered_flash(states: States, entries: int, scale: float) -> Callable[[], Tensor]:
    from flash_attn import flash_attn_func

    # Its causal mask ends at the last key: the last query sees all, the first one `entries` + 1.
    return lambda: flash_attn_func(*states(), softmax_scale=scale, causal=True).flatten(0, 1)
