"""When checkpoints are written: while the training waits, or beside it.

Beside it (training.async_save) the steps wait until every rank has a copy of its state on the host;
a thread of each rank then hashes and writes it, and the ranks agree over a store (meeting.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from data_pipeline.tokenizer import Tokenizer
from msa_train.config import Config
from msa_train.training import checkpoint
from msa_train.training.checkpoint import RunState
from msa_train.training.engine import Engine
from msa_train.training.saying import say


class Saver:
    """The checkpoints of a run; every rank has one, and all call the same.

    One is written at a time: the next waits for it.
    """

    def __init__(self, engine: Engine, config: Config, tokenizer: Tokenizer):
        self._given = engine, config, tokenizer
        self._says = dist.get_rank() == 0
        self._writing: _Writing | None = None
        self._sealed: list[tuple[Path, int]] = []
        self._stall_s = self._written_s = 0.0

    def save(self, state: RunState, ends: bool) -> float:
        """Returns the seconds that it took from the steps. ends: none follows, so nothing is
        gained by copying."""
        began = time.perf_counter()
        if self._writing is not None:
            other, late = self._writing.step, self._writing.is_alive()
            self.finish()
            if late and self._says:
                say(
                    f"the checkpoint of step {state.step} waited {time.perf_counter() - began:.1f} "
                    f"s for that of step {other} to be written"
                )
        beside = self._given[1].training.async_save and not ends
        write = checkpoint.begin(*self._given, state, beside)
        if beside:
            self._writing = _Writing(write, state.step, began)
        else:
            self._sealed.append((write(), state.step))
            self._written_s += time.perf_counter() - began
        seconds = time.perf_counter() - began
        self._stall_s += seconds
        return seconds

    @property
    def failed(self) -> bool:
        """Whether this rank knows that the checkpoint at hand will not be: `finish` says why."""
        return self._writing is not None and self._writing.error is not None

    def finish(self) -> None:
        """Wait until nothing is being written. Raises what any rank met, on all of them."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        writing.join()  # the ranks' meeting has a time limit
        if writing.error is not None:
            raise writing.error
        self._sealed.append((writing.folder, writing.step))
        self._written_s += writing.seconds

    def take_sealed(self) -> list[tuple[Path, int]]:
        """Checkpoints, with their steps, that are complete since it was asked before."""
        if self._writing is not None and self._writing.folder is not None:
            self.finish()
        sealed, self._sealed = self._sealed, []
        return sealed

    def take_times(self) -> dict[str, float]:
        """Since it was asked before: for how many seconds steps have waited for checkpoints, and
        how many those took that are complete, from their step to their seal."""
        times = {"checkpoint_stall_s": self._stall_s, "checkpoint_s": self._written_s}
        self._stall_s = self._written_s = 0.0
        return times


class _Writing(threading.Thread):
    """One checkpoint that is being written. folder, error: which of them it has, once it has;
    seconds: from `began` until then."""

    def __init__(self, write: Callable[[], Path], step: int, began: float):
        super().__init__(name=f"checkpoint of step {step}", daemon=True)
        self._write, self.step, self._began, self.seconds = write, step, began, 0.0
        self.folder: Path | None = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            folder = self._write()
            self.seconds = time.perf_counter() - self._began
            self.folder = folder
        except Exception as error:
            self.error = error
        self._write = None  # and the copies it holds
