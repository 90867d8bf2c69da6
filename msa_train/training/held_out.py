"""Evaluation while training: losses, perplexity and recall on what training does not see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.schema import Sample
from data_pipeline.shards.reader import ShardReader
from msa_train.model.batch import MemoryBatch
from msa_train.model.megatron import Losses
from msa_train.parallel.groups import DeepSpeedGroups
from msa_train.training.collate import Collate
from msa_train.training.engine import Engine
from msa_train.training.measurement import found_positives
from msa_train.training.reporter import Numbers
from msa_train.training.tracking.retrievals import Retrieved, retrieval_rows

_EXAMPLES, _EXAMPLE_DOCUMENTS = 3, 5  # questions of a source; documents of a layer
_SUMS = ("lm", "labels", "router", "routed", "recall@1", "recall@k")


class HeldOut:
    """Held-out samples, shared over the data-parallel ranks.

    Numbers are means per source: `held_out/SOURCE/lm` over labelled tokens, `router` and recalls
    over routed contexts (and router layers). Plain texts count apart, as `held_out/SOURCE_text`,
    with their perplexity.
    """

    def __init__(self, reader: ShardReader, collate: Collate, layers: Sequence[int]):
        parts = [part for i in range(len(reader)) for part in _parts(reader[i])]
        self.names = sorted({part.source for part in parts})
        self._layers, self._collate = layers, collate
        rank, ranks = (
            DeepSpeedGroups.get_data_parallel_rank(),
            DeepSpeedGroups.get_data_parallel_world_size(),
        )
        self._own = parts[rank::ranks]
        # Every forward may be a collective: ranks with fewer samples repeat one, uncounted.
        self._idle = -(-len(parts) // ranks) - len(self._own)
        self._spare = parts[0]

    def evaluate(self, engine: Engine) -> tuple[Numbers, list[list]]:
        """The numbers, and rows of retrievals.COLUMNS for a few questions of this rank.

        Every rank must call.
        """
        examples: dict[str, list[list]] = {}
        sums = torch.zeros(len(self.names), len(_SUMS), dtype=torch.float64, device=engine.device)
        with torch.no_grad():
            for part in self._own:
                batch = self._collate([part]).to(engine.device)
                losses = engine(batch)
                sums[self.names.index(part.source)] += self._measure(batch, losses)
                if part.source not in examples:
                    examples[part.source] = self._examples(part, losses)
            for _ in range(self._idle):
                engine(self._collate([self._spare]).to(engine.device))
        dist.all_reduce(sums, group=DeepSpeedGroups.get_data_parallel_group())
        numbers: Numbers = {}
        for name, row in zip(self.names, sums.tolist(), strict=True):
            numbers |= _means(f"held_out/{name}", dict(zip(_SUMS, row, strict=True)))
        return numbers, [row for rows in examples.values() for row in rows]

    def _measure(self, batch: MemoryBatch, losses: Losses) -> Tensor:
        asked = batch.positives.any(1)
        positives = batch.positives[asked]
        first = best = 0.0
        for layer in self._layers:
            found = found_positives(losses.routings[layer].documents[asked], positives)
            first += float(found[:, :1].sum()) / len(self._layers)
            best += float((found.sum(1) / positives.sum(1)).sum()) / len(self._layers)
        counts = (batch.label_count, float(losses.router), batch.routed_context_count, first, best)
        return losses.lm.new_tensor([float(losses.lm), *counts], dtype=torch.float64)

    def _examples(self, part: Sample, losses: Losses) -> list[list]:
        """What every router layer found for the part's first questions."""
        asked = [i for i, context in enumerate(part.contexts) if context.positives]
        rows: list[list] = []
        for i in asked[:_EXAMPLES]:
            found = {}
            for layer in self._layers:
                routing = losses.routings[layer]
                best = zip(routing.documents[i].tolist(), routing.values[i].tolist(), strict=True)
                found[layer] = [
                    Retrieved(part.documents[place].number, score, part.documents[place].text)
                    for place, score in list(best)[:_EXAMPLE_DOCUMENTS]
                    if place >= 0
                ]
            context = part.contexts[i]
            rows += retrieval_rows(context.question, context.positives, found)
        return rows


def forgetting(now: Numbers, before: Numbers) -> Numbers:
    """How much worse plain texts are read than at the start of the run, in nats per token."""
    return {
        key.removesuffix("lm") + "forgetting": value - before[key]
        for key, value in now.items()
        if key.endswith("_text/lm") and key in before
    }


def _parts(sample: Sample) -> list[Sample]:
    """The sample's questions, and its plain texts as a source of their own."""
    texts = tuple(c for c in sample.contexts if c.kind == "text")
    asked = tuple(c for c in sample.contexts if c.kind != "text")
    parts = [replace(sample, contexts=asked)] if asked else []
    if texts:
        documents = sample.documents[:1]
        parts.append(Sample(documents, texts, f"{sample.source}_text"))
    return parts


def _means(name: str, sums: dict[str, float]) -> Numbers:
    numbers = {f"{name}/lm": sums["lm"] / max(1.0, sums["labels"])}
    if name.endswith("_text"):
        numbers[f"{name}/perplexity"] = math.exp(min(50.0, numbers[f"{name}/lm"]))
    if sums["routed"]:
        for key in ("router", "recall@1", "recall@k"):
            numbers[f"{name}/{key}"] = sums[key] / sums["routed"]
    return numbers
