"""Evaluation during training on held-out samples: losses, perplexity, recall, and what the routers
choose for a few questions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.schema import Document, Sample
from data_pipeline.shards.reader import ShardReader
from msa_train.config import Config
from msa_train.errors import ConfigError
from msa_train.model.batch import MemoryBatch
from msa_train.model.losses import Losses
from msa_train.model.transfer import moved
from msa_train.parallel.documents import DocumentGroup
from msa_train.parallel.groups import DeepSpeedGroups
from msa_train.training.data import Collate
from msa_train.training.gradient_cache import GradientCache
from msa_train.training.metrics import Numbers, recall_sums

# Of the table of sample retrievals: what each router layer found for a question.
COLUMNS = ("question", "positives", "layer", "rank", "document", "score", "hit", "text")
SNIPPET = 200  # characters of a document in it
_EXAMPLES, _EXAMPLE_DOCUMENTS = 3, 5  # questions of a source; documents of a layer
_SUMS = ("lm", "labels", "router", "routed", "recall@1", "recall@k")
_ROUTED = ("router", "recall@1", "recall@k")


class HeldOutEvaluation:
    """Held-out samples, shared by the data-parallel ranks, or by groups of them (documents).

    Numbers are means per source: `held_out/SOURCE/lm` over labelled tokens, `router` and recalls
    over routed contexts (and router layers). Plain texts are a source of their own,
    `held_out/SOURCE_text`, with their perplexity. numbers: the names of all.
    """

    def __init__(
        self,
        reader: ShardReader,
        collate: Collate,
        layers: Sequence[int],
        documents: DocumentGroup,
    ):
        parts = [part for i in range(len(reader)) for part in _parts(reader[i])]
        self.names = sorted({part.source for part in parts})
        asked = {part.source for part in parts if any(c.positives for c in part.contexts)}
        self.numbers = [number for name in self.names for number in _numbers(name, name in asked)]
        # Plain texts cost little: behind all others, so that each rank gets as many of either.
        parts.sort(key=lambda part: part.contexts[0].kind == "text")
        self._layers, self._collate = layers, collate
        self._documents = documents
        self._own = parts[documents.replica :: documents.replicas]
        # Every forward may be a collective: ranks with fewer samples repeat one, uncounted.
        self._idle = -(-len(parts) // documents.replicas) - len(self._own)
        self._spare = parts[0]

    @classmethod
    def of_run(
        cls, config: Config, collate: Collate, documents: DocumentGroup
    ) -> HeldOutEvaluation | None:
        """Of the run's held-out samples; None where the settings ask for none."""
        if not config.training.held_out_every:
            return None
        reader = ShardReader(
            config.held_out_shards,
            cache=config.path / "held-out-cache",
            cache_gb=config.training.cache_gb,
        )
        if not reader.manifest.matches(config.held_out):
            raise ConfigError(
                f"{config.held_out_shards} was built from other settings: "
                f"{reader.manifest.differences(config.held_out)}: build it again (msa data build)"
            )
        found = cls(reader, collate, config.model.router_layers, documents)
        best = config.training.best
        if best is not None and best not in found.numbers:
            raise ConfigError(
                f"training.best is {best}, and {config.held_out_shards} gives "
                f"{', '.join(found.numbers)}: give one of these"
            )
        return found

    def evaluate(self, gradients: GradientCache) -> tuple[Numbers, list[list]]:
        """The numbers, and rows of COLUMNS for a few questions of this rank.

        Every rank must call.
        """
        examples: dict[str, list[list]] = {}
        device = gradients.engine.device
        sums = torch.zeros(len(self.names), len(_SUMS), dtype=torch.float64, device=device)
        for part in self._own:
            batch, losses = self._losses(part, gradients)
            sums[self.names.index(part.source)] += self._measure(batch, losses)
            if part.source not in examples:
                examples[part.source] = self._examples(part, batch, losses)
        for _ in range(self._idle):
            self._losses(self._spare, gradients)
        dist.all_reduce(sums, group=DeepSpeedGroups.get_data_parallel_group())
        numbers: Numbers = {}
        for name, row in zip(self.names, sums.tolist(), strict=True):
            numbers |= _means(f"held_out/{name}", dict(zip(_SUMS, row, strict=True)))
        return numbers, [row for rows in examples.values() for row in rows]

    def _losses(self, part: Sample, gradients: GradientCache) -> tuple[MemoryBatch, Losses]:
        own = self._documents
        batch = self._collate([part]).share(own.rank, own.size).to(gradients.engine.device)
        return batch, gradients.losses(batch)

    def _measure(self, batch: MemoryBatch, losses: Losses) -> Tensor:
        """[_SUMS], without waiting for the device."""
        recalls = recall_sums(batch, losses, self._layers).double()[:-1] / len(self._layers)
        found = torch.zeros(2, dtype=torch.float64, device=recalls.device)
        for of_layer in recalls.split(2):
            found = found + of_layer
        counts = torch.tensor([batch.label_count, batch.routed_context_count], dtype=torch.float64)
        (counts,) = moved([counts], found.device)
        lm, router = losses.lm.double(), losses.router.double()
        return torch.stack([lm, counts[0], router, counts[1], *found])

    def _examples(self, part: Sample, batch: MemoryBatch, losses: Losses) -> list[list]:
        """Rows of COLUMNS for the first questions of a part that this rank asks."""
        contexts = part.contexts if batch.own is None else part.contexts[batch.own.contexts]
        asked = [i for i, context in enumerate(contexts) if context.positives]
        rows: list[list] = []
        for i in asked[:_EXAMPLES]:
            found = {}
            for layer in self._layers:
                routing = losses.routings[layer]
                best = zip(routing.documents[i].tolist(), routing.values[i].tolist(), strict=True)
                found[layer] = [
                    (part.documents[place], score)
                    for place, score in list(best)[:_EXAMPLE_DOCUMENTS]
                    if place >= 0
                ]
            rows += retrieval_rows(contexts[i].question, contexts[i].positives, found)
        return rows


def forgetting(now: Numbers, before: Numbers) -> Numbers:
    """How much worse plain texts are predicted than at the start of the run, in nats per token."""
    return {
        key.removesuffix("lm") + "forgetting": value - before[key]
        for key, value in now.items()
        if key.endswith("_text/lm") and key in before
    }


def retrieval_rows(
    question: str, positives: Iterable[int], found: Mapping[int, Sequence[tuple[Document, float]]]
) -> list[list[str | int | float | bool]]:
    """Rows of COLUMNS. positives: the documents that answer; found: by router layer, best first,
    each with its score."""
    right = set(positives)
    named = ", ".join(map(str, sorted(right)))
    return [
        [question, named, layer, rank, each.number, score, each.number in right,
         _snippet(each.text)]
        for layer, documents in sorted(found.items())
        for rank, (each, score) in enumerate(documents, 1)
    ]  # fmt: skip


def _snippet(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SNIPPET else flat[: SNIPPET - 1] + "…"


def _parts(sample: Sample) -> list[Sample]:
    """A sample's questions, and its plain texts, each as a sample."""
    texts = tuple(c for c in sample.contexts if c.kind == "text")
    asked = tuple(c for c in sample.contexts if c.kind != "text")
    parts = [replace(sample, contexts=asked)] if asked else []
    if texts:
        documents = sample.documents[:1]
        parts.append(Sample(documents, texts, f"{sample.source}_text"))
    return parts


def _numbers(source: str, asked: bool) -> list[str]:
    """Names of what `_means` gives of a source. asked: it has questions with positive documents."""
    numbers = ["lm"] + ["perplexity"] * source.endswith("_text")
    return [f"held_out/{source}/{each}" for each in numbers + list(_ROUTED) * asked]


def _means(name: str, sums: dict[str, float]) -> Numbers:
    numbers = {f"{name}/lm": sums["lm"] / max(1.0, sums["labels"])}
    if name.endswith("_text"):
        numbers[f"{name}/perplexity"] = math.exp(min(50.0, numbers[f"{name}/lm"]))
    if sums["routed"]:
        for key in _ROUTED:
            numbers[f"{name}/{key}"] = sums[key] / sums["routed"]
    return numbers
