"""Training runs on two gloo ranks that can be killed at any moment.

A start costs a second (tests/distributed/ranks.py), so that a hundred kills fit into an hour.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.distributed.ranks import ENVIRONMENT, free_port, prepared, start_all

RANKS = 2
PATIENCE_S = 120


@dataclass
class Run:
    """Two ranks at work."""

    ranks: list

    def wait(self) -> list[int]:
        """Exit codes; fails, naming them, when ranks have not ended in time."""
        deadline = time.monotonic() + PATIENCE_S
        for rank in self.ranks:
            rank.join(max(0.1, deadline - time.monotonic()))
        late = [i for i, rank in enumerate(self.ranks) if rank.is_alive()]
        for i in late:
            self.ranks[i].kill()
        assert not late, f"ranks {late} hang"
        return [rank.exitcode for rank in self.ranks]

    def kill(self, victims: list[int]) -> None:
        for victim in victims:
            self.ranks[victim].kill()


def start(arguments: list[str], log: Path, before: Callable[[int], None] | None = None) -> Run:
    """Start `msa_train.training.trainer` with these arguments on every rank, after before(rank)."""
    context, port = prepared(), free_port()
    ranks = [
        context.Process(target=_rank, args=(rank, port, arguments, log, before), daemon=True)
        for rank in range(RANKS)
    ]
    start_all(ranks)
    return Run(ranks)


def _rank(
    rank: int, port: int, arguments: list[str], log: Path, before: Callable[[int], None] | None
) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **ENVIRONMENT,
    }  # fmt: skip
    from msa_train.training.trainer import main

    if before is not None:
        before(rank)
    sys.argv = ["trainer"]
    main(arguments)
