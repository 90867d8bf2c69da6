"""A serving case: encode the authors' blocks, route their prompts, decode greedily."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from msa_train.interop.conformance.recorder import Recorder
from msa_train.interop.published_config import from_published
from msa_train.model.attention import Pooled
from msa_train.model.batch import PackedDocuments
from msa_train.model.decoder import MSADecoder, PooledMemory
from msa_train.model.kv_cache import KVCache
from msa_train.model.router import Routing


@torch.no_grad()
def compare_serving(
    case: Path, meta: dict[str, Any], weights: dict[str, Tensor], recorder: Recorder
) -> None:
    """Pooled memory, scores, selections and the logits of each decode step of one case."""
    raw = meta["config"]
    msa = {**raw["msa_config"], "top_k_docs": meta["doc_top_k"]}
    config = from_published({**raw, "msa_config": msa}, "serving")
    model = MSADecoder(config).load_published(weights)
    stored, query = (load_file(case / f"{name}.safetensors") for name in ("memory", "query"))
    ours = _Comparison(model, stored, query, meta, recorder)
    head, doc_tokens, doc_cu = _documents(stored)
    pooled = model.encode(doc_tokens, doc_cu)
    for layer, states in pooled.items():
        ours.compare_memory(layer, states)
    chunk_cu = PackedDocuments(doc_tokens, doc_cu).layout(config.router.chunk_size).chunk_cu
    numbers = torch.arange(1, len(chunk_cu)).repeat_interleave(chunk_cu.diff())
    recorder.equal("chunk_doc", numbers.tolist(), stored["chunk_doc"].tolist())
    ours.compare_decoding(head, PooledMemory(pooled, chunk_cu, config.router))


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


@dataclass(frozen=True)
class _Comparison:
    """Our model beside what theirs kept of the blocks (`stored`) and answered (`query`)."""

    model: MSADecoder
    stored: dict[str, Tensor]
    query: dict[str, Tensor]
    meta: dict[str, Any]
    recorder: Recorder

    def compare_memory(self, layer: int, ours: Pooled) -> None:
        states = {
            "pooled_k": ours.k,
            "pooled_v": ours.v,
            "pooled_router_k": ours.key.unflatten(1, (self.model.config.kv_heads, -1)),
        }
        for name, state in states.items():
            if (theirs := self.stored.get(f"{name}.{layer}")) is not None:
                self.recorder.close(f"{name}.{layer}", state.transpose(0, 1), theirs)

    def compare_decoding(self, head: Tensor, memory: PooledMemory) -> None:
        """The prompts' states and routing, then each step of greedy decoding."""
        model, query, recorder = self.model, self.query, self.recorder
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
        packed = map(torch.cat, (positions, routes))
        heads = torch.full((contexts,), h)
        prefill = model.prefill(torch.cat(tokens), ctx_cu, *packed, heads, memory)
        starts = ctx_cu[:-1] + h
        after_head = torch.cat(
            [torch.arange(a, b) for a, b in zip(starts, ctx_cu[1:], strict=True)]
        )
        states = prefill.hidden[after_head]
        recorder.close("prompt_final_hidden", states, query["prompt_final_hidden"][real])
        for layer in range(model.config.layers):
            for name, kept in (("template_k", prefill.keys), ("template_v", prefill.values)):
                ours = kept[layer][:h].transpose(0, 1)
                recorder.close(f"{name}.{layer}", ours, self.stored[f"{name}.{layer}"])
        for layer, selected in prefill.selected.items():
            self._compare_routing(layer, selected.routing, real & is_query)
        cache = KVCache(model.config, contexts, int(lengths.max()) + steps, prefill.hidden)
        cache.admit(prefill, range(contexts), range(contexts))
        last = prefill.last
        for step in range(steps):
            logits = model.logits(last)
            recorder.close(f"logits of step {step}", logits, query["logits"][step])
            chosen, places = logits.argmax(-1), cache.position - 1
            for name, ours in (("step_tokens", chosen), ("step_positions", places)):
                recorder.equal(f"{name} of step {step}", ours.tolist(), query[name][step].tolist())
            if step + 1 < steps:
                last = model.decode(chosen, cache, cache.begin_step([True] * contexts))

    def _compare_routing(self, layer: int, routing: Routing, asked: Tensor) -> None:
        """asked [m, T] bool: the query tokens."""
        config, query, recorder = self.model.config, self.query, self.recorder
        theirs = query[f"router_q.{layer}"].transpose(1, 2)[asked]  # [Nq, H, D]
        theirs = theirs * self.meta["scaling_applied_to_router_q"]
        theirs = config.router.scoring.join_heads(theirs, config.kv_heads, config.heads)
        recorder.close(f"router_q.{layer}", routing.query, theirs)
        recorder.close(f"doc_scores.{layer}", routing.document_scores, query[f"doc_scores.{layer}"])
        recorder.close(f"top_scores.{layer}", routing.values, query[f"top_scores.{layer}"])
        chosen = [row[row >= 0].tolist() for row in routing.documents]
        chunks = routing.index_cu.diff().tolist()
        for what, key, ours in (
            ("documents", "selected_docs_score_order", chosen),
            ("chunks", "num_selected_chunks", chunks),
        ):
            recorder.equal(f"selected {what} {layer}", ours, self.meta[key][str(layer)])
