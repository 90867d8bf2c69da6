"""What other libraries offer for the same work, where they are installed and can do it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Peers = dict[str, Callable[[], Tensor]]


def causal(states: list[Tensor], cu: Tensor, scale: float) -> Peers:
    """Causal attention inside each document: q [N, H, D], k and v [N, G, D], cu [n+1]."""
    lengths = cu.diff().tolist()
    peers = {"sdpa, padded" if len(set(lengths)) > 1 else "sdpa, equal lengths": _padded}
    if cu.is_cuda:  # on a CPU nested tensors take no causal mask, and flex has no backward pass
        peers |= {"sdpa, nested": _nested, "flex": _flex}
    if importlib.util.find_spec("flash_attn"):
        peers["flash-attn"] = _flash
    return _able({name: make(states, cu, lengths, scale) for name, make in peers.items()})


def late_interaction(query: Tensor, keys: Tensor, chunk_cu: Tensor) -> Peers:
    """Scores of one question [T, V] for packed documents [C, V]: each sums over tokens where ours
    takes the largest, at the same cost."""
    peers: Peers = {}
    longest = int(chunk_cu.diff().max())
    cu, whole = chunk_cu.int(), chunk_cu.new_tensor([0, len(query)]).int()
    narrow = query.to(keys.dtype)
    if importlib.util.find_spec("late_interaction_kernels"):
        from late_interaction_kernels.varlen import maxsim_varlen

        sizes = len(query), longest
        peers["late-interaction-kernels"] = lambda: maxsim_varlen(narrow, keys, whole, cu, *sizes)
    if importlib.util.find_spec("flash_maxsim"):
        from flash_maxsim import flash_maxsim_packed

        half = keys.half()  # it computes in float16 alone
        peers["flash-maxsim"] = lambda: flash_maxsim_packed(narrow.half(), half, cu, longest)
    return _able(peers)


def _able(peers: Peers) -> Peers:
    """Those that run here, forward and (if anything learns) backward; the others named."""
    able = {}
    for name, run in peers.items():
        try:
            out = run()
            if out.requires_grad:
                out.sum().backward()
        except Exception as error:  # whatever a library raises where its limits end
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
