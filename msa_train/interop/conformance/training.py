"""A training case: the authors' padded batch through our packed forward and backward pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from msa_train.interop.conformance.recorder import Recorder
from msa_train.interop.published_config import from_published
from msa_train.model.batch import IGNORE, MemoryBatch, StreamLayout
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
    ours = _Comparison(packed, model, model(packed.batch), expected, meta, recorder)
    ours.compare_layout()
    ours.compare_states(inputs)
    for layer in config.router_layers:
        ours.compare_routing(layer)
    ours.compare_losses()
    _compare_gradients(model, load_file(case / "grads.safetensors"), recorder)


class PackedCase:
    """The padded [B, T] form as a MemoryBatch, with the place of each packed token."""

    def __init__(self, inputs: dict[str, Tensor], aux_labels: list[list[int]]):
        self.documents: list[tuple[int, int]] = []  # (row, document number)
        doc_places: list[list[tuple[int, int]]] = []  # (row, column) of each document's tokens
        ctx_places: list[list[tuple[int, int]]] = []
        heads, bank_lengths = [], []
        for row, (ids, real) in enumerate(
            zip(inputs["doc_ids"], inputs["attention_mask"], strict=True)
        ):
            columns = real.nonzero().squeeze(1).tolist()
            active = [t for t in columns if ids[t] <= QUESTION]
            numbers = sorted({int(ids[t]) for t in columns if ids[t] > QUESTION})
            self.documents += [(row, number) for number in numbers]
            doc_places += [[(row, t) for t in columns if ids[t] == number] for number in numbers]
            ctx_places.append([(row, t) for t in active])
            first_document = min(t for t in columns if ids[t] > QUESTION)
            heads.append(sum(t < first_document for t in active))
            bank_lengths.append(len(numbers))
        self._doc_index, self._ctx_index = (
            tuple(torch.tensor([place for each in places for place in each]).T)
            for places in (doc_places, ctx_places)
        )
        labels = torch.full_like(inputs["labels"], IGNORE)
        labels[:, :-1] = inputs["labels"][:, 1:]
        positives = torch.zeros(len(ctx_places), len(doc_places), dtype=torch.bool)
        bank_cu = _cumulative(bank_lengths)
        for row, flags in enumerate(aux_labels):
            positives[row, bank_cu[row] : bank_cu[row + 1]] = torch.tensor(flags).bool()
        self.batch = MemoryBatch(
            doc_tokens=self.documents_of(inputs["input_ids"]),
            doc_cu=_cumulative(map(len, doc_places)),
            doc_numbers=torch.tensor([number for _, number in self.documents]),
            doc_ids=torch.arange(len(self.documents)),
            bank_cu=bank_cu,
            tokens=self.contexts_of(inputs["input_ids"]),
            ctx_cu=_cumulative(map(len, ctx_places)),
            ctx_bank=torch.arange(len(ctx_places)),
            positions=self.contexts_of(inputs["position_ids"]),
            is_query=self.contexts_of(inputs["doc_ids"]) == QUESTION,
            memory_from=torch.tensor(heads),
            labels=self.contexts_of(labels),
            positives=positives,
            masked=torch.zeros_like(positives),
            doc_labels=self.documents_of(labels),
        )

    def documents_of(self, padded: Tensor) -> Tensor:
        return padded[self._doc_index]

    def contexts_of(self, padded: Tensor) -> Tensor:
        return padded[self._ctx_index]


@dataclass(frozen=True)
class _Comparison:
    """Our forward pass over a case beside what theirs gave (`expected`)."""

    packed: PackedCase
    model: MSADecoder
    out: Output
    expected: dict[str, Tensor]
    meta: dict[str, Any]
    recorder: Recorder

    @property
    def chunk_cu(self) -> Tensor:
        return StreamLayout.of(self.packed.batch, self.model.config.router.chunk_size).chunk_cu

    def compare_layout(self) -> None:
        """The sample and the document number of each pooled row."""
        rows = torch.tensor(self.packed.documents).repeat_interleave(self.chunk_cu.diff(), 0)
        for name, ours in (("chunk_sample", rows[:, 0]), ("chunk_doc", rows[:, 1])):
            if (theirs := self.expected.get(name)) is not None:
                self.recorder.equal(name, ours.tolist(), theirs.tolist())

    def compare_states(self, inputs: list[Tensor]) -> None:
        """Final states, and those that went into each layer."""
        packed, final = self.packed, self.expected["final_hidden"]
        self.recorder.close("final_hidden of contexts", self.out.hidden, packed.contexts_of(final))
        self.recorder.close(
            "final_hidden of documents", self.out.doc_hidden, packed.documents_of(final)
        )
        for layer, ours in enumerate(inputs):
            if (theirs := self.expected.get(f"hidden_in.{layer}")) is not None:
                both = torch.cat([packed.documents_of(theirs), packed.contexts_of(theirs)])
                self.recorder.close(f"hidden_in.{layer}", ours, both)

    def compare_routing(self, layer: int) -> None:
        routing, pooled = self.out.routings[layer], self.out.pooled[layer]
        for name, ours in (
            ("pooled_k", pooled.k),
            ("pooled_v", pooled.v),
            ("router_k_pooled", pooled.key.unflatten(1, (self.model.config.kv_heads, -1))),
        ):
            if (theirs := self.expected.get(f"{name}.{layer}")) is not None:
                self.recorder.close(f"{name}.{layer}", ours, theirs)
        theirs = self.expected[f"doc_scores.{layer}"]
        ours = torch.full_like(theirs, -torch.inf)
        for index, (row, number) in enumerate(self.packed.documents):
            ours[row, number] = routing.document_scores[row, index].detach()
        self.recorder.close(f"doc_scores.{layer}", ours, theirs)
        self._compare_chunk_scores(layer)
        numbers = self.packed.batch.doc_numbers
        chosen = [numbers[row[row >= 0]].tolist() for row in routing.documents]
        expected = self.meta["selected_docs"][str(layer)]
        self.recorder.equal(f"selected documents {layer}", chosen, expected)

    def _compare_chunk_scores(self, layer: int) -> None:
        """Chunk scores are document scores of documents of one chunk each."""
        if (theirs := self.expected.get(f"chunk_scores.{layer}")) is None:
            return
        routing, batch, keys = (
            self.out.routings[layer],
            self.packed.batch,
            self.out.pooled[layer].key,
        )
        chunk_bank_cu = self.chunk_cu[batch.bank_cu]
        scores = self.model.config.router.scoring.document_scores(
            routing.query,
            routing.query_cu,
            keys,
            torch.arange(len(keys) + 1),
            batch.ctx_bank,
            chunk_bank_cu,
        )
        for row, (first, last) in enumerate(pairwise(chunk_bank_cu)):
            ours = scores[row, first:last]
            self.recorder.close(f"chunk_scores.{layer}[{row}]", ours, theirs[row, : len(ours)])

    def compare_losses(self) -> None:
        """The losses; also leaves their gradients in the model."""
        batch, out, config = self.packed.batch, self.out, self.model.config
        labels = torch.cat([batch.doc_labels, batch.labels])
        hidden = torch.cat([out.doc_hidden, out.hidden])[labels != IGNORE]
        lm = token_loss_sum(self.model.logits(hidden), labels[labels != IGNORE]) / batch.label_count
        per_layer = [
            router_loss_sum(
                out.routings[layer].document_scores, batch.positives, batch.masked, config.router
            )
            for layer in config.loss_layers
        ]
        # As published, a sample without positives counts in the mean, and no layer at all gives 0.
        samples = len(batch.positives)
        aux = torch.stack(per_layer).mean() / samples if per_layer else torch.zeros(())
        msa = self.meta["config"]["msa_config"]
        total = msa.get("lmloss_weigth", 1.0) * lm + msa.get("auxloss_weight", 0.1) * aux
        for name, ours in (("lm_loss", lm), ("aux_loss", aux), ("total_loss", total)):
            self.recorder.close(name, ours, self.expected[name])
        total.backward()


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


def _cumulative(lengths: Iterable[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)
