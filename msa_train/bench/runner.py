"""How every benchmark measures: in processes of their own, in turns, with the memory they took.

A row that reports memory, or whose libraries print, is measured by `in_process`. `Workers` are
several such processes that stay, for what is done by all of them at once. What is compared is timed
by `in_turns`: other work on the machine then slows all sides.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from msa_train.errors import MSAError, RankError

TIMEOUT_S = 3600.0  # of one row
_END_S = 10.0
_STATUS = Path("/proc/self/status")


class Workers:
    """Fresh processes that are asked all at once: each calls what its `prepare` returned.

    prepare: one picklable function per process, called in it. threads: of torch in each.
    timeout_s: of an answer (None: TIMEOUT_S). Raises RankError where a process dies or takes
    longer, and what a process raises. What a process started ends with it, and it with this one,
    also where this one is killed. On the GPU that is the current one here.
    """

    def __init__(
        self, name: str, prepare: Sequence[Callable[[], Callable[..., Any]]], threads: int
    ):
        context = get_context("spawn")
        self.timeout_s: float | None = None
        self.processes, self._ends = [], []
        self._names = [name]
        if len(prepare) > 1:
            self._names = [f"{name} {number} of {len(prepare)}" for number in range(len(prepare))]
        for each in prepare:
            ours, theirs = context.Pipe()
            given = theirs, each, threads, _card()
            process = context.Process(target=_work, args=given, daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self.processes.append(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        for end in self._ends:
            end.close()
        for process in self.processes:
            if kind is None:
                process.join(_END_S)
            _signal_group(process.pid, signal.SIGTERM)  # it may have files to remove
            process.join(_END_S)
            _signal_group(process.pid, signal.SIGKILL)
            process.kill()  # which has made no group yet
            process.join(_END_S)

    def __len__(self) -> int:
        return len(self.processes)

    def ask(self, *arguments: Any) -> list[Any]:
        """The answer of every process."""
        for name, end in zip(self._names, self._ends, strict=True):
            self._attempt(name, lambda end=end: end.send(arguments))
        return [
            self._attempt(name, partial(_answer, name, end, self.timeout_s))
            for name, end in zip(self._names, self._ends, strict=True)
        ]

    def _attempt(self, name: str, exchange: Callable[[], Any]) -> Any:
        try:
            return exchange()
        except (EOFError, ConnectionError):
            raise RankError(
                f"bench: the process of {name} died (see standard error); was there memory for it?"
            ) from None


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a fresh process, whose peak memory is its own. Raises as Workers."""
    prepare = partial(partial, function, *arguments)  # its part is to bind, asking is the call
    with Workers(function.__name__.strip("_"), [prepare], torch.get_num_threads()) as workers:
        return workers.ask()[0]


def _work(
    end: Connection, prepare: Callable[[], Callable[..., Any]], threads: int, card: int
) -> None:
    os.setpgrp()  # ends with all that it starts
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(2, 1)  # DeepSpeed and gloo print; standard output is for the result
    torch.set_num_threads(threads)
    if card:
        torch.cuda.set_device(card)
    try:
        run = prepare()
        while (arguments := _asked(end)) is not None:
            end.send((run(*arguments), None))
    except Exception as error:
        if not hasattr(error, "exit_code"):  # a bug: say where
            traceback.print_exc()
        end.send((None, _sendable(error)))


def _end_with_parent() -> None:
    """Nobody is left to read an answer."""
    parent_process().join()
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal_group(os.getpgrp(), number)
        time.sleep(_END_S)


def _signal_group(number: int, which: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it made none yet, or all of it is gone
        os.killpg(number, which)


def _asked(end: Connection) -> tuple | None:
    try:
        return end.recv()
    except EOFError:  # the parent is done
        return None


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RankError(f"bench: {type(error).__name__}: {error}")
    return error


def _answer(name: str, end: Connection, timeout_s: float | None) -> Any:
    limit = TIMEOUT_S if timeout_s is None else timeout_s
    if not end.poll(limit):
        raise RankError(f"bench: {name} was not done in {limit:,.0f} s")
    result, error = end.recv()
    if error is not None:
        raise error
    return result


def in_turns(
    sides: Mapping[str, Callable[[], Any]],
    repeats: int,
    clock: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
    """Milliseconds of every run; every round runs each side once, after one warm-up.

    clock: seconds; time.process_time counts the work of this process's threads alone. None: events
    on a GPU, of which each run finds its cache empty; elsewhere time.perf_counter.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            took = _event_ms(run) if clock is None and _on_cuda() else _clock_ms(run, clock)
            if turn:
                times[name].append(took)
    return times


def _clock_ms(run: Callable[[], Any], clock: Callable[[], float] | None) -> float:
    clock = clock or time.perf_counter
    _synchronize()
    began = clock()
    run()
    _synchronize()
    return (clock() - began) * 1e3


def _event_ms(run: Callable[[], Any]) -> float:
    """From an idle device to the end of the last kernel: what the host does between counts too."""
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    torch.zeros(2 * cache, dtype=torch.uint8, device="cuda")  # nothing of the last run is left
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result)."""
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def process_bytes() -> dict[str, int]:
    """Of this process: peak and present resident memory, and of that its own and files' pages."""
    names = {"VmHWM": "peak", "VmRSS": "resident", "RssAnon": "own", "RssFile": "files"}
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    return {names[key[:-1]]: int(rest[0]) * 1024 for key, *rest in lines if key[:-1] in names}


def process_gb() -> dict[str, float]:
    """The same in GB."""
    return {name: round(size / 1e9, 3) for name, size in process_bytes().items()}


class _Heap(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    ]  # fmt: skip


@cache
def _mallinfo() -> Callable[[], _Heap]:
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        raise MSAError("memory in use is told by glibc 2.33 or newer, which is not here") from None
    ask.restype = _Heap
    return ask


def in_use() -> int:
    """Bytes that this process has of malloc, where torch's tensors lie, by glibc's own account.
    Raises MSAError where that has none."""
    heap = _mallinfo()()
    return heap.uordblks + heap.hblkhd


class PeakInUse:
    """The most of `in_use` since it was made, beyond what there was then; looked at every 10 ms."""

    def __init__(self) -> None:
        self._before = self._most = in_use()
        threading.Thread(target=self._look, name="peak in use", daemon=True).start()

    @property
    def bytes(self) -> int:
        return self._most - self._before

    def _look(self) -> None:
        while True:
            self._most = max(self._most, in_use())
            time.sleep(0.01)


def tensors_mb(run: Callable[[], object]) -> float:
    """Largest sum of tensor memory alive at once while `run` runs, in MiB.

    On the CPU from the allocator's own records, so that temporaries inside torch's operations
    count; on CUDA from its statistics. Memory alive before the call does not count.
    """
    run()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / (1 << 20)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as records:
        run()
    events = records.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    alive = peak = 0
    for _, change in changes:
        alive += change
        peak = max(peak, alive)
    return peak / (1 << 20)


def log(text: str) -> None:
    """Which row is measured now, on standard error."""
    print(f"bench {text}", file=sys.stderr, flush=True)


def _on_cuda() -> bool:
    return torch.cuda.is_available()


def _card() -> int:
    """Number of the current GPU; 0 where none was chosen."""
    return torch.cuda.current_device() if torch.cuda.is_initialized() else 0


def _synchronize() -> None:
    if _on_cuda():
        torch.cuda.synchronize()
