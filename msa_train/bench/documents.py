"""What document-parallel ranks save, and what goes between them: `msa bench documents`.

The same step of the quickstart's model, untrained, over random tokens, with the gradient cache: on
one rank, and on RANKS that share the bank, with pooled states gathered or sharded. Every rank is a
process with one thread on the CPU, so that its peak memory is its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, ClassVar, Literal

import torch

from msa_train.bench.runner import (
    TIMEOUT_S,
    PeakInUse,
    Workers,
    log,
    process_bytes,
    seconds,
)
from msa_train.bench.train import CONTEXT, DOCUMENT, GROUP, MODEL, bank_of, quickstart_engine
from msa_train.training.launch import free_port
from msa_train.training.planner.layout import Layout
from msa_train.training.planner.memory import needed, rank_bytes
from msa_train.training.planner.sizes import SampleSize
from msa_train.training.planner.traffic import traffic
from msa_train.training.planner.weights import weights

Sharing = Literal["alone", "gathered", "sharded"]

RANKS, QUESTIONS = 2, 64
K = 1024
ROWS: tuple[tuple[Sharing, int], ...] = tuple(
    (sharing, n * K)
    for n in (4, 16, 64, 256, 1024, 4096)
    for sharing in ("alone", "gathered", "sharded")
)
LEAST_S = 10.0  # steps are repeated for so long; at least one after a warm-up


def measure(
    rows: tuple[tuple[Sharing, int], ...] = ROWS, least_s: float = LEAST_S
) -> list[dict[str, Any]]:
    """A row per measurement.

    MB of 10^6 bytes, of the largest rank. peak_mb: of its process, libraries and all; in_use_mb:
    what a rank has allocated of that at most, beside planned_mb, which is planned_memory. sent_mb:
    what one rank sends to others in a step, as counted; formula_mb: as planned_traffic says (None
    with sharded states: it depends on what is found).
    """
    found = []
    for row in rows:
        log("documents: " + " ".join(map(str, row)))
        found.append(_row(*row, least_s))
    return found


def planned_traffic(memory_tokens: int, ranks: int) -> float:
    """Bytes that a rank sends in a step with gathered pooled states, as `msa plan train` has it."""
    found = traffic(MODEL, Layout(documents=ranks), weights(MODEL), _sample(memory_tokens), 1, 4)
    return sum(each.sent for each in found if each.kind == "pooled states")


def planned_memory(sharing: Sharing, memory_tokens: int) -> int:
    """Bytes that a rank allocates at most, as `msa plan train` has it."""
    ranks = 1 if sharing == "alone" else RANKS
    layout = Layout(documents=ranks, cache=GROUP, sharded=sharing == "sharded")
    return needed(rank_bytes(MODEL, layout, weights(MODEL), _sample(memory_tokens), 1, 4))


def _sample(memory_tokens: int) -> SampleSize:
    return SampleSize.usual(memory_tokens, memory_tokens // DOCUMENT, QUESTIONS, CONTEXT)


def _row(sharing: Sharing, memory_tokens: int, least_s: float) -> dict[str, Any]:
    ranks = 1 if sharing == "alone" else RANKS
    given = sharing, memory_tokens, ranks, free_port()
    prepare = [partial(_rank, rank, *given) for rank in range(ranks)]
    times: list[float] = []
    with Workers(f"a rank, {sharing}", prepare, threads=1) as workers:
        workers.ask()
        while not times or sum(times) < least_s:
            times.append(seconds(workers.ask)[0])
        peaks, used, sent = zip(*workers.ask(True), strict=True)
    step_s = median(times)
    formula = None
    if sharing != "sharded":
        formula = round(planned_traffic(memory_tokens, ranks) / 1e6, 4)
    return {
        "mode": sharing,
        "ranks": ranks,
        "memory_tokens": memory_tokens,
        "questions": QUESTIONS,
        "tokens_per_s": round(memory_tokens / step_s, 1),
        "step_ms": round(step_s * 1e3, 1),
        "us_per_token": round(step_s * 1e6 / memory_tokens, 2),
        "peak_mb": round(max(peaks) / 1e6, 1),
        "in_use_mb": round(max(used) / 1e6, 1),
        "planned_mb": round(planned_memory(sharing, memory_tokens) / 1e6, 1),
        "sent_mb": round(max(sent) / 1e6 / (len(times) + 1), 4),
        "formula_mb": formula,
        "steps": len(times),
    }


def _rank(
    rank: int, sharing: Sharing, memory_tokens: int, ranks: int, port: int
) -> Callable[..., Any]:
    """What does a step whenever it is called; at last, the memory it took and what it has sent."""
    from msa_train.parallel.documents import DocumentGroup
    from msa_train.training.gradient_cache import GradientCache

    torch.manual_seed(0)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    used = PeakInUse()
    engine = quickstart_engine("cpu")
    documents = _counted(DocumentGroup.of(ranks, TIMEOUT_S))
    engine.model.shards = documents if sharing == "sharded" else None
    gradients = GradientCache(engine, GROUP, documents)
    batch = bank_of(memory_tokens, QUESTIONS).share(rank, ranks)

    def run(last: bool = False) -> Any:
        if last:
            return process_bytes()["peak"], used.bytes, sum(documents.sent)
        gradients.backward(batch, lambda losses: losses.lm + losses.router)
        engine.step()
        return None

    return run


def _counted(group: Any) -> Any:
    """The same group, which keeps in `sent` how many bytes each call sends to other ranks."""

    class Counted(type(group)):
        sent: ClassVar[list[int]] = []

        def gather(self, states, counts):
            self._padded(states, counts)
            return super().gather(states, counts)

        def scatter(self, gradients, counts):
            self._padded(gradients, counts)
            return super().scatter(gradients, counts)

        def exchange(self, rows, send, receive):
            row = rows.nbytes // max(1, len(rows))
            self.sent.append(row * (sum(send) - send[self.rank]))
            return super().exchange(rows, send, receive)

        def _padded(self, tensors, counts):
            row = sum(each.nbytes // max(1, len(each)) for each in tensors)
            self.sent.append(row * max(counts) * (self.size - 1))

    return Counted(group.size, group.rank, group.replica, group.replicas, group.group)
