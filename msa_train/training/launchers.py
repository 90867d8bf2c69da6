"""A rank whose launcher has died, or asks it to, stops as it does on SIGTERM.

DeepSpeed's launcher dies of a SIGTERM at once and leaves its ranks behind, torchrun dies so of a
SIGKILL, which nobody can catch: so each rank looks after the processes that started it, instead of
training on unseen.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import psutil

STARTED_BY = "MSA_TRAIN_PROCESS"  # `msa train` tells its ranks its process number by it
_EVERY_S = 1.0
_MODULES = ("deepspeed.launcher.", "torch.distributed.run")  # as `python -m` has them


def watch(
    stop: Callable[[str], None],
    asked: Callable[[], bool] = lambda: False,
    every_s: float = _EVERY_S,
) -> None:
    """Calls `stop` once, from a thread, with the reason: a launcher of this process is gone, or
    `asked` says so.

    Without a launcher (a rank that was started by hand) nothing is looked after.
    """
    if launchers := _launchers():
        arguments = launchers, stop, asked, every_s
        threading.Thread(target=_look, args=arguments, name="launchers", daemon=True).start()


def _look(
    launchers: list[psutil.Process | None],
    stop: Callable[[str], None],
    asked: Callable[[], bool],
    every_s: float,
) -> None:
    while all(_lives(each) for each in launchers):
        if asked():
            return stop("msa train was told to end")
        time.sleep(every_s)
    stop("the launcher is gone")


def _launchers() -> list[psutil.Process | None]:
    """DeepSpeed's launchers or torchrun above this process, and `msa train`; None: one that is dead
    already."""
    found = [each for each in psutil.Process().parents() if _launches(each)]
    started_by = os.environ.get(STARTED_BY)
    if started_by is not None:
        try:
            found.append(psutil.Process(int(started_by)))
        except psutil.NoSuchProcess:
            found.append(None)
    return found


def _launches(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return any(
        os.path.basename(word) in ("deepspeed", "torchrun") or word.startswith(_MODULES)
        for word in words
    )


def _lives(process: psutil.Process | None) -> bool:
    """Whether it is this very process still, and not one that nobody has collected."""
    if process is None:
        return False
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
