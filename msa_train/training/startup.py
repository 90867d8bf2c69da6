"""What the time between the start of a rank and the end of its first step goes to."""

from __future__ import annotations

import os
import time

import psutil

STARTED_AT = "MSA_TRAIN_STARTED_AT"  # `msa train` tells its ranks the time by it


class StartUp:
    """Seconds by part, each from the end of the one before; the first is the launcher's, where
    `msa train` has started this process, or the process's own."""

    def __init__(self):
        began = psutil.Process().create_time()
        self._last = float(os.environ.get(STARTED_AT, began))
        self._parts: dict[str, float] = {}
        self._done = False
        if STARTED_AT in os.environ:
            self._parts["start/launcher_s"] = began - self._last
            self._last = began

    def ends(self, part: str) -> None:
        """Nothing is counted any more after `finish`."""
        if not self._done:
            now = time.time()
            self._parts[f"start/{part}_s"] = now - self._last
            self._last = now

    def finish(self, part: str) -> None:
        self.ends(part)
        self._done = True

    def take(self) -> dict[str, float]:
        """Once."""
        parts, self._parts = self._parts, {}
        return parts
