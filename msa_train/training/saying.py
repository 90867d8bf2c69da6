"""Lines for people. Whoever reads them may be gone, and with them the terminal or the pipe."""

from __future__ import annotations

import contextlib
import sys


def say(text: str) -> None:
    """A line on standard error, or nowhere where that is closed: no reason to lose a run."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
