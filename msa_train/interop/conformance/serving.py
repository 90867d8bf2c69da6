"""A serving case: encode the authors' blocks, route their prompts, decode greedily."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from msa_train.interop.conformance.recorder import Recorder
from msa_train.interop.published_config import from_published
from msa_train.model.attention import Pooled
from msa_train.model.batch import PackedDocuments
from msa_train.model.config import ModelConfig
from msa_train.model.decoder import MSADecoder, PooledMemory
from msa_train.model.kv_cache import KVCache, Prefill


@torch.no_grad()
def compare_serving(
    case: Path, meta: dict[str, Any], weights: dict[str, Tensor], recorder: Recorder
) -> None:
    """Pooled memory, scores, selections and the logits of each decode step of one case."""
    raw = meta["config"]
    msa = {**raw["msa_config"], "top_k_docs": meta["doc_top_k"]}
    config = from_published({**raw, "msa_config": msa}, "serving")
    model = MSADecoder(config).load_published(weights)
    stored = load_file(case / "memory.safetensors")
    head, doc_tokens, doc_cu = _documents(stored)
    pooled = model.encode(doc_tokens, doc_cu)
    for layer, ours in pooled.items():
        _compare_memory(layer, ours, stored, config, recorder)
    chunk_cu = PackedDocuments(doc_tokens, doc_cu).layout(config.router.chunk_size).chunk_cu
    numbers = torch.arange(1, len(chunk_cu)).repeat_interleave(chunk_cu.diff())
    recorder.equal("chunk_doc", numbers.tolist(), stored["chunk_doc"].tolist())
    memory = PooledMemory(pooled, chunk_cu, config.router)
    query = load_file(case / "query.safetensors")
    _compare_decoding(model, head, memory, query, stored, meta, recorder)


def _documents(stored: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Head tokens, packed document tokens [Nd] and their cumulative lengths, of all blocks."""
    head, tokens, lengths = None, [], []
    block = 0
    while f"stage1.{block}.input_ids" in stored:
        ids, doc_ids = stored[f"stage1.{block}.input_ids"], stored[f"stage1.{block}.doc_ids"]
        head = ids[doc_ids < 0] if head is None else head
        for number in range(1, int(doc_ids.max()) + 1):
            tokens.append(ids[doc_ids == number])
            lengths.append(len(tokens[-1]))
        block += 1
    return head, torch.cat(tokens), torch.tensor([0, *lengths]).cumsum(0)


def _compare_memory(
    layer: int,
    ours: Pooled,
    stored: dict[str, Tensor],
    config: ModelConfig,
    recorder: Recorder,
) -> None:
    states = {
        "pooled_k": ours.k,
        "pooled_v": ours.v,
        "pooled_router_k": ours.key.unflatten(1, (config.kv_heads, -1)),
    }
    for name, state in states.items():
        if (theirs := stored.get(f"{name}.{layer}")) is not None:
            recorder.close(f"{name}.{layer}", state.transpose(0, 1), theirs)


def _compare_decoding(
    model: MSADecoder,
    head: Tensor,
    memory: PooledMemory,
    query: dict[str, Tensor],
    stored: dict[str, Tensor],
    meta: dict[str, Any],
    recorder: Recorder,
) -> None:
    real = query["attention_mask"].bool()
    contexts, h = len(real), len(head)
    is_query = query["doc_ids"] == 0
    none = torch.zeros(h, dtype=torch.bool)
    tokens, positions, routes = [], [], []
    for row in range(contexts):
        tokens += [head, query["input_ids"][row][real[row]]]
        positions += [torch.arange(h), query["position_ids"][row][real[row]]]
        routes += [none, is_query[row][real[row]]]
    lengths = real.sum(1) + h
    ctx_cu = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    steps = len(query["logits"])
    prefill = model.prefill(
        torch.cat(tokens),
        ctx_cu,
        torch.cat(positions),
        torch.cat(routes),
        torch.full((contexts,), h),
        memory,
    )
    after_head = torch.cat([torch.arange(ctx_cu[c] + h, ctx_cu[c + 1]) for c in range(contexts)])
    states = prefill.hidden[after_head]
    recorder.close("prompt_final_hidden", states, query["prompt_final_hidden"][real])
    for layer in range(model.config.layers):
        for name, kept in (("template_k", prefill.keys), ("template_v", prefill.values)):
            ours = kept[layer][:h].transpose(0, 1)
            recorder.close(f"{name}.{layer}", ours, stored[f"{name}.{layer}"])
    for layer in prefill.selected:
        _compare_routing(layer, prefill, query, meta, real, is_query, model.config, recorder)
    cache = KVCache(model.config, contexts, int(lengths.max()) + steps, prefill.hidden)
    cache.admit(prefill, range(contexts), range(contexts))
    last = prefill.last
    for step in range(steps):
        logits = model.logits(last)
        recorder.close(f"logits of step {step}", logits, query["logits"][step])
        chosen = logits.argmax(-1)
        recorder.equal(
            f"step_tokens of step {step}", chosen.tolist(), query["step_tokens"][step].tolist()
        )
        recorder.equal(
            f"step_positions of step {step}",
            (cache.position - 1).tolist(),
            query["step_positions"][step].tolist(),
        )
        if step + 1 < steps:
            last = model.decode(chosen, cache, cache.begin_step([True] * contexts))


def _compare_routing(
    layer: int,
    prefill: Prefill,
    query: dict[str, Tensor],
    meta: dict[str, Any],
    real: Tensor,
    is_query: Tensor,
    config: ModelConfig,
    recorder: Recorder,
) -> None:
    routing = prefill.selected[layer].routing
    theirs = query[f"router_q.{layer}"].transpose(1, 2)[real & is_query]  # [Nq, H, D]
    theirs = theirs * meta["scaling_applied_to_router_q"]
    theirs = config.router.scoring.join_heads(theirs, config.kv_heads, config.heads)
    recorder.close(f"router_q.{layer}", routing.query, theirs)
    recorder.close(f"doc_scores.{layer}", routing.document_scores, query[f"doc_scores.{layer}"])
    recorder.close(f"top_scores.{layer}", routing.values, query[f"top_scores.{layer}"])
    chosen = [row[row >= 0].tolist() for row in routing.documents]
    recorder.equal(
        f"selected documents {layer}", chosen, meta["selected_docs_score_order"][str(layer)]
    )
    recorder.equal(
        f"selected chunks {layer}",
        routing.index_cu.diff().tolist(),
        meta["num_selected_chunks"][str(layer)],
    )
