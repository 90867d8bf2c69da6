"""A training case: the authors' padded batch through our packed forward and backward pass."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from msa_train.interop.conformance.recorder import Recorder
from msa_train.interop.published_config import from_published
from msa_train.model.batch import IGNORE, MemoryBatch, StreamLayout
from msa_train.model.config import ModelConfig
from msa_train.model.decoder import MSADecoder, Output
from msa_train.model.losses import router_loss_sum, token_loss_sum

QUESTION = 0  # of doc_ids; documents are > 0, template and response tokens below 0


def compare_training(
    case: Path, meta: dict[str, Any], weights: dict[str, Tensor], recorder: Recorder
) -> None:
    """Hidden states, pooled states, scores, selections, losses and gradients of one case."""
    config = from_published(meta["config"], "training")
    if "temperature" in weights:  # the published loss reads the weight, not the config
        temperature = float(weights["temperature"])
        config = replace(config, router=replace(config.router, temperature=temperature))
    model = MSADecoder(config).load_published(weights)
    packed = PackedCase(load_file(case / "inputs.safetensors"), meta["batch_aux_labels"])
    expected = load_file(case / "outputs.safetensors")
    inputs: list[Tensor] = []  # into each layer
    for layer in model.model.layers:
        layer.input_layernorm.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    out = model(packed.batch)
    _compare_layout(packed, config, expected, recorder)
    _compare_states(packed, out, inputs, expected, recorder)
    for layer in config.router_layers:
        _compare_routing(packed, config, out, layer, expected, meta, recorder)
    _compare_losses(packed, config, model, out, expected, meta, recorder)
    _compare_gradients(model, load_file(case / "grads.safetensors"), recorder)


class PackedCase:
    """The padded [B, T] form as a MemoryBatch, with the place of each packed token."""

    def __init__(self, inputs: dict[str, Tensor], aux_labels: list[list[int]]):
        self.doc_places: list[tuple[int, int]] = []  # (row, column) of each packed document token
        self.ctx_places: list[tuple[int, int]] = []
        self.documents: list[tuple[int, int]] = []  # (row, document number)
        doc_lengths, ctx_lengths, heads, bank_lengths = [], [], [], []
        for row, (ids, real) in enumerate(
            zip(inputs["doc_ids"], inputs["attention_mask"], strict=True)
        ):
            columns = real.nonzero().squeeze(1).tolist()
            active = [t for t in columns if ids[t] <= QUESTION]
            numbers = sorted({int(ids[t]) for t in columns if ids[t] > QUESTION})
            for number in numbers:
                places = [(row, t) for t in columns if ids[t] == number]
                self.doc_places += places
                self.documents.append((row, number))
                doc_lengths.append(len(places))
            first_document = min(t for t in columns if ids[t] > QUESTION)
            heads.append(sum(t < first_document for t in active))
            self.ctx_places += [(row, t) for t in active]
            ctx_lengths.append(len(active))
            bank_lengths.append(len(numbers))
        self.bank_lengths = bank_lengths
        self.batch = self._batch(inputs, aux_labels, doc_lengths, ctx_lengths, heads)

    def _batch(
        self,
        inputs: dict[str, Tensor],
        aux_labels: list[list[int]],
        doc_lengths: list[int],
        ctx_lengths: list[int],
        heads: list[int],
    ) -> MemoryBatch:
        labels = torch.full_like(inputs["labels"], IGNORE)
        labels[:, :-1] = inputs["labels"][:, 1:]
        contexts = len(ctx_lengths)
        positives = torch.zeros(contexts, len(doc_lengths), dtype=torch.bool)
        bank_cu = _cumulative(self.bank_lengths)
        for row, flags in enumerate(aux_labels):
            positives[row, bank_cu[row] : bank_cu[row + 1]] = torch.tensor(flags).bool()
        return MemoryBatch(
            doc_tokens=self.documents_of(inputs["input_ids"]),
            doc_cu=_cumulative(doc_lengths),
            doc_numbers=torch.tensor([number for _, number in self.documents]),
            doc_ids=torch.arange(len(self.documents)),
            bank_cu=bank_cu,
            tokens=self.contexts_of(inputs["input_ids"]),
            ctx_cu=_cumulative(ctx_lengths),
            ctx_bank=torch.arange(contexts),
            positions=self.contexts_of(inputs["position_ids"]),
            is_query=self.contexts_of(inputs["doc_ids"]) == QUESTION,
            memory_from=torch.tensor(heads),
            labels=self.contexts_of(labels),
            positives=positives,
            masked=torch.zeros_like(positives),
            doc_labels=self.documents_of(labels),
        )

    def documents_of(self, padded: Tensor) -> Tensor:
        return padded[tuple(torch.tensor(self.doc_places).T)]

    def contexts_of(self, padded: Tensor) -> Tensor:
        return padded[tuple(torch.tensor(self.ctx_places).T)]


def _compare_layout(
    packed: PackedCase, config: ModelConfig, expected: dict[str, Tensor], recorder: Recorder
) -> None:
    """The sample and the document number of each pooled row."""
    chunk_cu = StreamLayout.of(packed.batch, config.router.chunk_size).chunk_cu
    rows = torch.tensor(packed.documents).repeat_interleave(chunk_cu.diff(), 0)
    for name, ours in (("chunk_sample", rows[:, 0]), ("chunk_doc", rows[:, 1])):
        if (theirs := expected.get(name)) is not None:
            recorder.equal(name, ours.tolist(), theirs.tolist())


def _compare_gradients(model: MSADecoder, expected: dict[str, Tensor], recorder: Recorder) -> None:
    """Every gradient of theirs, and none of ours beside them."""
    for name, weight in model.named_parameters():
        if name in expected:
            ours = torch.zeros_like(weight) if weight.grad is None else weight.grad
            recorder.close(f"grad {name}", ours, expected[name])
        elif weight.grad is not None and bool(weight.grad.any()):
            recorder.fail(f"grad {name}: not zero, expected none")
    for name in sorted(expected.keys() - dict(model.named_parameters()).keys()):
        recorder.fail(f"grad {name}: no such parameter")


def _compare_states(
    packed: PackedCase,
    out: Output,
    inputs: list[Tensor],
    expected: dict[str, Tensor],
    recorder: Recorder,
) -> None:
    final = expected["final_hidden"]
    recorder.close("final_hidden of contexts", out.hidden, packed.contexts_of(final))
    recorder.close("final_hidden of documents", out.doc_hidden, packed.documents_of(final))
    for layer, ours in enumerate(inputs):
        if (theirs := expected.get(f"hidden_in.{layer}")) is not None:
            both = torch.cat([packed.documents_of(theirs), packed.contexts_of(theirs)])
            recorder.close(f"hidden_in.{layer}", ours, both)


def _compare_routing(
    packed: PackedCase,
    config: ModelConfig,
    out: Output,
    layer: int,
    expected: dict[str, Tensor],
    meta: dict[str, Any],
    recorder: Recorder,
) -> None:
    routing, pooled = out.routings[layer], out.pooled[layer]
    for name, ours in (
        ("pooled_k", pooled.k),
        ("pooled_v", pooled.v),
        ("router_k_pooled", pooled.key.unflatten(1, (config.kv_heads, -1))),
    ):
        if (theirs := expected.get(f"{name}.{layer}")) is not None:
            recorder.close(f"{name}.{layer}", ours, theirs)
    theirs = expected[f"doc_scores.{layer}"]
    ours = torch.full_like(theirs, -torch.inf)
    for index, (row, number) in enumerate(packed.documents):
        ours[row, number] = routing.document_scores[row, index].detach()
    recorder.close(f"doc_scores.{layer}", ours, theirs)
    _compare_chunk_scores(packed, config, out, layer, expected, recorder)
    numbers = packed.batch.doc_numbers
    chosen = [numbers[row[row >= 0]].tolist() for row in routing.documents]
    recorder.equal(f"selected documents {layer}", chosen, meta["selected_docs"][str(layer)])


def _compare_chunk_scores(
    packed: PackedCase,
    config: ModelConfig,
    out: Output,
    layer: int,
    expected: dict[str, Tensor],
    recorder: Recorder,
) -> None:
    """Chunk scores are document scores of documents of one chunk each."""
    if (theirs := expected.get(f"chunk_scores.{layer}")) is None:
        return
    routing, batch, keys = out.routings[layer], packed.batch, out.pooled[layer].key
    chunk_bank_cu = StreamLayout.of(batch, config.router.chunk_size).chunk_cu[batch.bank_cu]
    scores = config.router.scoring.document_scores(
        routing.query,
        routing.query_cu,
        keys,
        torch.arange(len(keys) + 1),
        batch.ctx_bank,
        chunk_bank_cu,
    )
    for row, (first, last) in enumerate(pairwise(chunk_bank_cu)):
        ours = scores[row, first:last]
        recorder.close(f"chunk_scores.{layer}[{row}]", ours, theirs[row, : len(ours)])


def _compare_losses(
    packed: PackedCase,
    config: ModelConfig,
    model: MSADecoder,
    out: Output,
    expected: dict[str, Tensor],
    meta: dict[str, Any],
    recorder: Recorder,
) -> None:
    batch = packed.batch
    labels = torch.cat([batch.doc_labels, batch.labels])
    hidden = torch.cat([out.doc_hidden, out.hidden])[labels != IGNORE]
    lm = token_loss_sum(model.logits(hidden), labels[labels != IGNORE]) / batch.label_count
    per_layer = [
        router_loss_sum(
            out.routings[layer].document_scores, batch.positives, batch.masked, config.router
        )
        for layer in config.loss_layers
    ]
    # As published, a sample without positives counts in the mean, and no layer at all gives 0.
    samples = len(batch.positives)
    aux = torch.stack(per_layer).mean() / samples if per_layer else torch.zeros(())
    msa = meta["config"]["msa_config"]
    total = msa.get("lmloss_weigth", 1.0) * lm + msa.get("auxloss_weight", 0.1) * aux
    for name, ours in (("lm_loss", lm), ("aux_loss", aux), ("total_loss", total)):
        recorder.close(name, ours, expected[name])
    total.backward()


def _cumulative(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)
