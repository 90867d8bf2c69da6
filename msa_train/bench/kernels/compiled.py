"""Triton kernels compiled for cards that are not here: registers, spills, shared memory.

The launchers themselves run, on small CPU tensors, with a card that is only named: tiles, constants
and types are those of a real launch, and the kernel is compiled where it would have been started.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from msa_train.errors import ConfigError

# compute capability: the generation of msa_kernels.tiles
CARDS = {80: "ampere", 89: "consumer", 90: "hopper"}
SHARED_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}  # that a block may take
_SM_SHARED = {80: 164 << 10, 89: 100 << 10, 90: 228 << 10}  # of a multiprocessor
_SM_THREADS = {80: 2048, 89: 1536, 90: 2048}
_SM_REGISTERS, _WARP, _RESERVED = 1 << 16, 32, 1 << 10
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")


def measure(cards: Sequence[str], chosen: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows {"launch", "kernel", "card", "registers", "spilled", "shared", "warps", "blocks"}.

    cards: "sm_80" and the like; chosen: names of launches that contain one of these (none: all).
    registers of a thread; spilled: bytes of it that lie in memory instead; shared: bytes of a
    block; blocks that a multiprocessor holds. In as many processes as there are cores. Raises
    ConfigError for a card that is not among CARDS, and where Triton interprets.
    """
    from msa_kernels.dispatch import interpreting

    from msa_train.bench.kernels.launches import launches

    if interpreting():
        raise ConfigError("compile: TRITON_INTERPRET is 1, and nothing is compiled; unset it")
    known = {f"sm_{number}": number for number in CARDS}
    for card in cards:
        if card not in known:
            raise ConfigError(f"compile {card!r}: this card is unknown; give {', '.join(known)}")
    names = [
        each.name for each in launches() if not chosen or any(part in each.name for part in chosen)
    ]
    work = [(known[card], name) for card in cards for name in names]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        found = pool.map(_compiled_apart, *zip(*work, strict=True)) if work else ()
        return [row for rows in found for row in rows]


def _compiled_apart(capability: int, name: str) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    return compiled(capability, name)


def compiled(capability: int, name: str) -> list[dict[str, Any]]:
    """A row for each kernel of one launch of launches.py; none where the card does not take it."""
    from msa_train.bench.kernels.launches import launches

    (launch,) = (each for each in launches() if each.name == name)
    if capability < launch.since:
        return []
    with _card(capability) as kernels:
        launch.run()
    rows = [
        {"launch": name, "kernel": kernel.src.fn.__name__, **_use(kernel, capability)}
        for kernel in kernels
    ]
    return [row for place, row in enumerate(rows) if row not in rows[:place]]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line per kernel for the launches of default paths, and one for all others; of
    each card the most registers / bytes spilled / KB shared, and the fewest blocks."""
    from msa_train.bench.kernels.launches import is_default

    there = {row["card"] for row in rows}
    cards = [f"sm_{number}" for number in CARDS if f"sm_{number}" in there]
    lines: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in sorted(rows, key=lambda row: row["kernel"]):
        use = "default" if is_default(row["launch"]) else "other"
        own = lines.setdefault((row["kernel"], use), {card: [] for card in cards})
        own[row["card"]].append(row)
    body = [
        [f"`{kernel}`", use, *(_cell(own[card]) for card in cards)]
        for (kernel, use), own in sorted(lines.items())
    ]
    head = ["kernel", "paths", *cards]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))


def _cell(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:  # such a card does not take it
        return ""
    registers, spilled, shared = (
        max(row[name] for row in rows) for name in ("registers", "spilled", "shared")
    )
    blocks = min(row["blocks"] for row in rows)
    return f"{registers} / {spilled} / {-(-shared // 1024)} x {blocks}"


@contextmanager
def _card(capability: int) -> Iterator[list[Any]]:
    """Launches for such a card compile; what they leave is added to the list, nothing runs."""
    from msa_kernels import tiles
    from triton.runtime import driver, jit

    kernels: list[Any] = []
    run, generation, active = jit.JITFunction.run, tiles.generation, driver._active

    def compile_only(kernel: Any, *args: Any, warmup: bool, **options: Any) -> None:
        kernels.append(run(kernel, *args, warmup=True, **options))

    jit.JITFunction.run, tiles.generation = compile_only, lambda device: CARDS[capability]
    driver.set_active(_NamedCard(capability))
    try:
        yield kernels
    finally:
        jit.JITFunction.run, tiles.generation = run, generation
        driver._active = active


class _NamedCard:
    """As much of Triton's driver as compiling asks for."""

    def __init__(self, capability: int):
        self._capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._capability, _WARP)

    def get_current_device(self) -> int:
        return self._capability  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


def _use(kernel: Any, capability: int) -> dict[str, Any]:
    registers, spilled = _registers(kernel.asm["cubin"])
    shared, warps = kernel.metadata.shared, kernel.metadata.num_warps
    given = 8 * -(-registers // 8) * warps * _WARP  # registers are given in eights
    blocks = min(
        _SM_REGISTERS // given,
        _SM_SHARED[capability] // (shared + _RESERVED),
        _SM_THREADS[capability] // (warps * _WARP),
    )
    return {
        "card": f"sm_{capability}", "registers": registers, "spilled": spilled, "shared": shared,
        "warps": warps, "blocks": blocks,
    }  # fmt: skip


def _registers(binary: bytes) -> tuple[int, int]:
    """(registers, bytes of the stack), by the tool that comes with Triton. A Triton kernel has
    nothing on its stack but what registers did not hold."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
    found = _USAGE.search(done.stdout + done.stderr)
    if found is None:
        raise RuntimeError(f"{tool} says nothing of registers: {done.stdout}{done.stderr}")
    return int(found[1]), int(found[2])
