"""What a training layout learns for its compute: `msa bench layouts`.

A bank of needle documents (three rare tokens each, among random ones); a question repeats the
tokens of one. Each layout trains the quickstart's model from random weights for the same time on
its router loss alone; then fresh banks are asked. shared: all questions of a step read one bank.
published: every question of a step brings a bank of its own, as the publication trains.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import torch
from torch import Tensor

from msa_train.bench.runner import in_process, log
from msa_train.bench.train import ASKED, DOCUMENT, MODEL, bank_batch, quickstart_engine
from msa_train.model.batch import IGNORE, MemoryBatch
from msa_train.training.gradient_cache import GradientCache
from msa_train.training.metrics import found_positives

TrainingLayout = Literal["shared", "published"]

DOCUMENTS, KEY, CONTEXT = 64, 3, 24  # in a bank; tokens of a key, of a context
RARE = 1024  # the last tokens of the vocabulary make keys, the others filler
ROWS: tuple[tuple[TrainingLayout, int], ...] = (
    ("shared", 1), ("shared", 8), ("shared", 64), ("published", 8), ("published", 64),
)  # fmt: skip
BUDGET_S, LEARNING_RATE, WARMUP_STEPS = 150.0, 2e-3, 20
TEST_BANKS = 32  # of 64 questions each


def measure(
    rows: tuple[tuple[TrainingLayout, int], ...] = ROWS,
    budget_s: float = BUDGET_S,
    test_banks: int = TEST_BANKS,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """A row per layout and number of questions in a step, each in a process of its own.

    device: cpu or cuda:N.
    """
    found = []
    for row in rows:
        log("layouts: " + " ".join(map(str, row)))
        found.append(in_process(_row, *row, budget_s, test_banks, device))
    return found


def _row(
    layout: TrainingLayout, questions: int, budget_s: float, test_banks: int, device: str
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    engine = quickstart_engine(device)
    gradients, steps, began = GradientCache(engine, None), 0, time.perf_counter()
    while time.perf_counter() - began < budget_s:
        shared = layout == "shared"
        batches = [_bank(generator, questions if shared else 1)]
        batches += [_bank(generator, 1) for _ in range(0 if shared else questions - 1)]
        for batch in batches:
            batch = batch.to(engine.device)
            gradients.backward(batch, lambda losses: losses.router / questions)
        engine.set_learning_rate(LEARNING_RATE * min(1.0, (steps + 1) / WARMUP_STEPS))
        engine.step()
        steps += 1
    seconds = time.perf_counter() - began
    return {
        "mode": layout,
        "memory_tokens": DOCUMENTS * DOCUMENT,
        "questions": questions,
        "seconds": round(seconds, 1),
        "steps": steps,
        "questions_trained": steps * questions,
        **_recall(engine, test_banks),
    }


def _recall(engine, banks: int) -> dict[str, float]:
    """Mean over router layers and questions about banks that no layout has trained on."""
    generator, hits = torch.Generator().manual_seed(1), []
    with torch.no_grad():
        for _ in range(banks):
            batch = _bank(generator, DOCUMENTS).to(engine.device)
            for routing in engine(batch).routings.values():
                found = found_positives(routing.documents, batch.positives).float()
                hits.append(torch.stack([found[:, 0].mean(), found.sum(1).mean()]))
    first, best = torch.stack(hits).mean(0).tolist()
    return {"recall@1": round(first, 4), f"recall@{MODEL.router.top_k}": round(best, 4)}


def _bank(generator: torch.Generator, questions: int) -> MemoryBatch:
    """A bank, and questions about different documents of it."""
    filler, vocabulary = MODEL.vocab_size - RARE, MODEL.vocab_size
    documents = _draw(generator, 0, filler, (DOCUMENTS, DOCUMENT))
    keys = _draw(generator, filler, vocabulary, (DOCUMENTS, KEY))
    place = _draw(generator, 0, DOCUMENT - KEY, (DOCUMENTS, 1)) + torch.arange(KEY)
    documents.scatter_(1, place, keys)
    asked = torch.randperm(DOCUMENTS, generator=generator)[:questions]
    contexts = torch.arange(CONTEXT).repeat(questions, 1)  # fixed words around the key
    contexts[:, ASKED - KEY : ASKED] = keys[asked]
    positives = torch.zeros(questions, DOCUMENTS, dtype=torch.bool)
    positives[torch.arange(questions), asked] = True
    return bank_batch(documents, contexts, torch.full_like(contexts, IGNORE), positives)


def _draw(generator: torch.Generator, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(low, high, shape, generator=generator)
