"""Worker processes: started, watched, and ended without a trace."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import IO

from msa_train.memory.ranks.channel import Channel

MODULE = "msa_train.memory.ranks.worker"
_LINES = 20  # of a worker's output are kept, for errors
_EXIT_S = 5.0
_MOMENT_S = 0.2


class Worker:
    """A rank's process and the channel to it."""

    def __init__(self, rank: int, threads: int):
        ours, theirs = socket.socketpair()
        self.rank, self.channel = rank, Channel(ours)
        with theirs:
            # One inherited file: its end closes with the worker, and ours with this process.
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": _path(), "OMP_NUM_THREADS": str(threads)},
            )
        self._lines: deque[str] = deque(maxlen=_LINES)
        given = self._process.stdout, self._lines
        self._reader = threading.Thread(target=_keep_last, args=given, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid})"

    def ended(self) -> bool:
        """Whether the process is gone, or goes this moment."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_MOMENT_S)
        return self._process.returncode is not None

    def fate(self) -> str:
        """How a worker that closed its channel ended."""
        try:
            code = self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        self._reader.join(_EXIT_S)
        how = (
            f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        )
        said = "\n".join(f"  {line}" for line in list(self._lines))
        return f"{how}; its last lines:\n{said}" if said else how

    def kill(self) -> None:
        """Ends it whatever it does, even where it was stopped; nothing of it is left."""
        self.channel.close()
        self._process.kill()
        self._process.wait()
        self._reader.join(_EXIT_S)
        self._process.stdout.close()


def threads_each(ranks: int) -> int:
    """Threads for each of `ranks` processes: its part of the cores, or OMP_NUM_THREADS."""
    cores = max(1, len(os.sched_getaffinity(0)) // ranks)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdigit() and int(asked) else cores


def _keep_last(output: IO[bytes], lines: deque[str]) -> None:
    for line in output:
        lines.append(line.decode(errors="replace").rstrip())


def _path() -> str:
    """What this process imports from, so that a worker runs the same code."""
    return os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
