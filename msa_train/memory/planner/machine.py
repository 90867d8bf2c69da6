"""This machine as the planner sees it: GPUs, and how much memory a process may still take."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from msa_train.errors import ConfigError
from msa_train.memory.planner.hardware import Card, named_as
from msa_train.memory.planner.plan import Machine

_MEMINFO, _STATUS = Path("/proc/meminfo"), Path("/proc/self/status")
_GROUP = Path("/sys/fs/cgroup")
_GROUP_FILES = (  # limit, use, statistics: version 2 of control groups, and version 1
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def this_machine(devices: Iterable[str] = ()) -> Machine:
    """devices: those that compute, one per rank, such as "cuda:0" (CPUs do not count).

    Memory: what is free, within the limit of a container, and what this process holds already (a
    model that was loaded): a plan counts all of it. Speeds are the table's where the driver's name
    is in it. Raises ConfigError for a device that is not there.
    """
    cards = tuple(_card(name) for name in devices if name != "cpu")
    return Machine(cards, available_memory() + own_memory())


def available_memory(meminfo: Path = _MEMINFO, group: Path = _GROUP) -> int:
    """Bytes of host memory that can still be taken; the page cache gives way."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    for limit, used, stat in _GROUP_FILES:
        most, taken = _number(group / limit), _number(group / used)
        if most is not None and taken is not None:
            free = min(free, most - taken + _page_cache(group / stat))
    return max(0, free)


def own_memory(status: Path = _STATUS) -> int:
    """Bytes that this process holds, without pages of files."""
    for line in status.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such file, or the word max
        return None


def _page_cache(file: Path) -> int:
    """Pages of files that the group can give up."""
    try:
        lines = dict(line.split() for line in file.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(lines.get("inactive_file", 0)) + int(lines.get("active_file", 0))


def _card(device: str) -> Card:
    import torch

    try:
        name = torch.cuda.get_device_name(device)
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(f"device {device!r} cannot be used: {error}") from error
    known = named_as(name)
    return Card(name, free, *((known.bandwidth, known.flops, known.source) if known else ()))
