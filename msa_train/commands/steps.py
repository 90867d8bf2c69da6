"""Commands made of commands: steps that are shown as a user would type them, and what they take."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import threading
from collections.abc import Callable, Sequence
from typing import Any

Main = Callable[[list[str]], int]  # `msa` in this process


def begin_step(number: str, what: str) -> None:
    print(f"\n== {number}  {what}", flush=True)


def run_msa(main: Main, arguments: Sequence[str]) -> None:
    """A command of `msa` in this process. Raises SystemExit with its code where it fails."""
    print(f"$ msa {shlex.join(arguments)}", flush=True)
    if code := main(list(arguments)):
        raise SystemExit(code)


def msa_json(main: Main, arguments: Sequence[str]) -> Any:
    """As run_msa, with --json: what the command reports, instead of printing it."""
    print(f"$ msa {shlex.join(arguments)}", flush=True)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = main([*arguments, "--json"])
    if code:
        raise SystemExit(code)
    return json.loads(printed.getvalue())


class MemoryWatch:
    """Peak resident memory of this process and all its children, sampled in a thread."""

    def __init__(self, every_s: float = 0.5):
        import psutil

        self._root, self._every, self._peak = psutil.Process(), every_s, 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Peak in GB."""
        self._stopped.set()
        self._thread.join()
        return self._peak / 1e9

    def _watch(self) -> None:
        import psutil

        while True:
            total = 0
            for process in [self._root, *self._root.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self._peak = max(self._peak, total)
            if self._stopped.wait(self._every):
                return
