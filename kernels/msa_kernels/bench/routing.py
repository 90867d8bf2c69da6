"""Document scoring: one GEMM of summed query heads against per-head scores (SPEC section 2).

16,384 chunks, 32 question tokens, the heads of the published 4B model, float32. Both sides start
from normalised router queries [T, H, D] and stored normalised keys, and end with the documents'
scores; ours builds its query vectors inside the measured time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from msa_kernels import document_scores
from msa_kernels.bench.measure import device_name, peak_memory_mb, time_in_turns
from msa_kernels.ragged import cumulative, segment_ids

CHUNKS, TOKENS, HEADS, KV_HEADS, HEAD_DIM = 16_384, 32, 32, 8, 128


def published_scores(query: Tensor, keys: Tensor, document: Tensor, documents: int) -> Tensor:
    """Per-head scores materialised: mean over heads, max over tokens, max over a document's chunks.

    As the published engine does it: query [1, G, H/G, T, D], keys [1, G, 1, D, C], document [C].
    """
    scores = torch.matmul(query, keys).flatten(1, 2).mean(1).amax(1)
    out = scores.new_full((1, documents), -torch.inf)
    return out.scatter_reduce_(1, document[None], scores, "amax")


def query_vectors(query: Tensor) -> Tensor:
    """[T, H, D] normalised router queries -> [T, G*D]: the sum of each group, over H."""
    return query.unflatten(1, (KV_HEADS, -1)).sum(2).flatten(1) / HEADS


def measure(repeats: int = 9) -> dict:
    """Times, their ratio, the largest difference, and scratch beside the floors of the device.

    gemm_ms: the GEMM of that size in one call, untiled; bandwidth_floor_ms: reading the keys once.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    query = F.normalize(torch.randn(TOKENS, HEADS, HEAD_DIM, generator=generator), dim=-1).to(
        device
    )
    keys = F.normalize(torch.randn(CHUNKS, KV_HEADS, HEAD_DIM, generator=generator), dim=-1).to(
        device
    )
    # Documents of one to three chunks.
    chunk_cu = cumulative(torch.randint(1, 4, (CHUNKS // 2,), generator=generator))
    chunk_cu = torch.cat([chunk_cu[chunk_cu < CHUNKS], torch.tensor([CHUNKS])]).to(device)
    documents, document = len(chunk_cu) - 1, segment_ids(chunk_cu)
    one = torch.zeros(1, dtype=torch.int64, device=device)
    query_cu, bank_cu = (torch.tensor([0, count], device=device) for count in (TOKENS, documents))
    flat = keys.flatten(1)
    # The layouts in which the published engine keeps its states.
    grouped = query.unflatten(1, (KV_HEADS, -1)).permute(1, 2, 0, 3)[None].contiguous()
    sliced = keys.permute(1, 0, 2).contiguous().mT[None, :, None]
    vectors = query_vectors(query)

    def ours() -> Tensor:
        return document_scores(query_vectors(query), query_cu, flat, chunk_cu, one, bank_cu)

    def published() -> Tensor:
        return published_scores(grouped, sliced, document, documents)

    with torch.no_grad():
        sides = {
            "published": published,
            "ours": ours,
            "gemm": lambda: vectors @ flat.T,
            "read": lambda: flat.sum(),
        }
        times = time_in_turns(sides, repeats)
        return {
            "published_ms": round(times["published"], 3),
            "ours_ms": round(times["ours"], 3),
            "ratio": round(times["published"] / times["ours"], 2),
            "max_abs_diff": float((ours() - published()).abs().max()),
            "scratch_mb": round(peak_memory_mb(ours), 3),
            "published_scratch_mb": round(peak_memory_mb(published), 3),
            "gemm_ms": round(times["gemm"], 3),
            "bandwidth_floor_ms": round(times["read"], 3),
            "device": device_name(),
            "threads": torch.get_num_threads(),
        }
