"""What a training step costs, against the memory it trains on: `msa bench train`.

plain: one bank, many questions, everything with a graph. gradient_cache: the same gradients, the
documents encoded twice in groups. published: one question per sequence, each with its own copy of
the bank. dense: the backbone alone, documents and question as one causal sequence.

The model is the quickstart's, untrained, the tokens are random: what is measured does not depend
on them. Every row is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from msa_train.bench.runner import in_process, log, process_bytes, seconds
from msa_train.config import TrainingConfig
from msa_train.model.batch import IGNORE, MemoryBatch, context_positions
from msa_train.model.config import ModelConfig, RouterConfig

Mode = Literal["plain", "gradient_cache", "published", "dense"]

MODEL = ModelConfig(
    layers=4, hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=256, vocab_size=4096,
    router=RouterConfig(top_k=16, chunk_size=64, gate="threshold"),
)  # fmt: skip
DOCUMENT, CONTEXT, HEAD, ASKED = 64, 48, 4, 20  # tokens
GROUP = 4096
K = 1024
ROWS: tuple[tuple[Mode, int, int], ...] = (
    *(("gradient_cache", n * K, 64) for n in (4, 16, 64, 256, 1024)),
    *(("plain", n * K, 64) for n in (4, 16, 64)),
    *(("plain", 16 * K, questions) for questions in (1, 8)),
    *(("published", 16 * K, questions) for questions in (1, 8, 64)),
    *(("dense", n * K, 1) for n in (4, 16, 64)),
)
LEAST_S, LONG_S = 10.0, 60.0  # steps are repeated for LEAST_S; one of LONG_S is not


def measure(
    rows: tuple[tuple[Mode, int, int], ...] = ROWS,
    least_s: float = LEAST_S,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """A row per measurement; memory_tokens and tokens_per_s count each document once.

    device: cpu or cuda:N. peak_mb (MiB): of the process's memory, or of tensors on the GPU.
    """
    found = []
    for row in rows:
        log("train: " + " ".join(map(str, row)))
        found.append(in_process(_row, *row, least_s, device))
    return found


def _row(
    mode: Mode, memory_tokens: int, questions: int, least_s: float, device: str
) -> dict[str, Any]:
    torch.manual_seed(0)
    batches = list(_batches(mode, memory_tokens, questions))
    step = _stepper(mode, batches, device)
    step_s, steps = seconds(step)[0], 1
    if step_s < LONG_S:  # the first one warmed up
        began, steps = time.perf_counter(), 0
        while steps == 0 or time.perf_counter() - began < least_s:
            step()
            steps += 1
        step_s = (time.perf_counter() - began) / steps
    return {
        "mode": mode,
        "memory_tokens": memory_tokens,
        "questions": questions,
        "tokens_per_s": round(memory_tokens / step_s, 1),
        "step_ms": round(step_s * 1e3, 1),
        "peak_mb": round(_peak_bytes(device) / (1 << 20), 1),
        "steps": steps,
        "threads": torch.get_num_threads(),
        "device": device,
    }


def _peak_bytes(device: str) -> int:
    if device == "cpu":
        return process_bytes()["peak"]
    return torch.cuda.max_memory_allocated(device)


def _batches(mode: Mode, memory_tokens: int, questions: int) -> Iterator[MemoryBatch]:
    """The micro-batches of one step."""
    if mode == "dense":
        # Documents and question as one sequence without a memory.
        yield from (bank_of(0, 1, memory_tokens + CONTEXT) for _ in range(questions))
    elif mode == "published":
        yield from (bank_of(memory_tokens, 1) for _ in range(questions))
    else:
        yield bank_of(memory_tokens, questions)


def bank_of(memory_tokens: int, questions: int, context: int = CONTEXT) -> MemoryBatch:
    """One bank of documents of DOCUMENT tokens; each question has one positive."""
    documents = memory_tokens // DOCUMENT
    written = torch.randint(MODEL.vocab_size, (questions, context))
    positives = torch.zeros(questions, documents, dtype=torch.bool)
    if documents:
        positives[torch.arange(questions), torch.randint(documents, (questions,))] = True
    labelled = torch.arange(context) >= context - CONTEXT + ASKED
    return bank_batch(
        torch.randint(MODEL.vocab_size, (documents, DOCUMENT)),
        torch.randint(MODEL.vocab_size, (questions, context)),
        torch.where(labelled, written, IGNORE),
        positives,
    )


def bank_batch(
    documents: Tensor,
    contexts: Tensor,
    labels: Tensor,
    positives: Tensor,
    top_k: int = MODEL.router.top_k,
) -> MemoryBatch:
    """One bank of n documents of equal length, and the m contexts that ask it.

    documents [n, t]; contexts, labels [m, c]: HEAD template tokens, question up to ASKED;
    positives [m, n]. top_k: of the model's router.
    """
    (n, each), (m, length) = documents.shape, contexts.shape
    place = torch.arange(length).repeat(m)
    return MemoryBatch(
        doc_tokens=documents.flatten(),
        doc_cu=torch.arange(n + 1) * each,
        doc_numbers=torch.arange(n),
        doc_ids=torch.arange(n),
        bank_cu=torch.tensor([0, n]),
        tokens=contexts.flatten(),
        ctx_cu=torch.arange(m + 1) * length,
        ctx_bank=torch.zeros(m, dtype=torch.int64),
        positions=context_positions(length, HEAD, top_k).repeat(m),
        is_query=(place >= HEAD) & (place < ASKED),
        memory_from=torch.full((m,), HEAD),
        labels=labels.flatten(),
        positives=positives,
        masked=torch.zeros_like(positives),
    )


def quickstart_engine(device: str):
    """The quickstart's model, untrained, under DeepSpeed; decides where its process
    trains, cpu or cuda:N."""
    from msa_train.model.megatron import MSAModel
    from msa_train.model.weights import initial_reader
    from msa_train.parallel import groups
    from msa_train.parallel.cpu import choose_device
    from msa_train.training.engine import Engine

    kind, _, number = device.partition(":")
    choose_device(kind)
    os.environ["LOCAL_RANK"] = number or "0"
    groups.start(tensor_parallel=1, timeout_s=600)
    model = MSAModel(MODEL)
    model.load_published(initial_reader(MODEL, 0))
    return Engine(model, TrainingConfig(zero_stage=1))


def _stepper(mode: Mode, batches: list[MemoryBatch], device: str) -> Callable[[], None]:
    """A step, from batches on the host to changed weights, done when it returns."""
    from msa_train.training.gradient_cache import GradientCache

    engine = quickstart_engine(device)
    gradients = GradientCache(engine, GROUP if mode == "gradient_cache" else None)

    def step() -> None:
        for batch in batches:
            gradients.backward(
                batch.to(engine.device), lambda losses: (losses.lm + losses.router) / len(batches)
            )
        engine.step()
        if device != "cpu":
            torch.cuda.synchronize()

    return step
