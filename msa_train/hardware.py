"""What computes: memory and speed of GPUs and of what joins them, as their makers print them, and
this machine.

Sizes and rates are read as a person types them ("512GiB", "864GB/s").
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from msa_train.errors import ConfigError


@dataclass(frozen=True)
class Card:
    """bytes: of its memory. bandwidth: bytes per second (0: unknown). flops: dense bfloat16
    operations per second (0: unknown). link, network: bytes per second that it sends to another
    card of its machine, and to other machines (0: unknown). source: where the numbers are from."""

    name: str
    bytes: int
    bandwidth: float = 0.0
    flops: float = 0.0
    source: str = ""
    link: float = 0.0
    network: float = 0.0


@dataclass(frozen=True)
class Machine:
    """cards: one per rank (none: a CPU computes, in host memory). host: bytes of memory that may be
    used; host_bandwidth: bytes per second (0: unknown)."""

    cards: tuple[Card, ...]
    host: int
    host_bandwidth: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """Equal cards in machines of `per_node` each; link, network: as of a Card.

    Raises ConfigError for cards that are no whole number of machines.
    """

    card: Card
    cards: int
    per_node: int
    link: float
    network: float

    def __post_init__(self) -> None:
        if self.per_node < 1 or self.cards % self.per_node:
            raise ConfigError(
                f"gpus asks for {self.cards} cards, which are no whole number of machines of "
                f"{self.per_node} (per-node): change one of them"
            )

    @property
    def nodes(self) -> int:
        return self.cards // self.per_node

    def bandwidth(self, ranks: int, stride: int) -> float:
        """Bytes per second that a ring of every stride-th rank, `ranks` of them, moves past each.

        Where it leaves the machine, the rings of a collective go through the network cards of all
        of its members there. 0: unknown.
        """
        if ranks * stride <= self.per_node:
            return self.link
        leaving = max(1, self.per_node // stride) * self.network
        return min(self.link, leaving) if self.link else leaving


def threads_each(ranks: int) -> int:
    """Threads for each of `ranks` processes: its part of the cores, or OMP_NUM_THREADS."""
    cores = max(1, len(os.sched_getaffinity(0)) // ranks)
    given = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(given)) if given.isdigit() and int(given) else cores


def _card(
    name: str, gb: int, gb_per_s: float, tflops: float, source: str, link: float, network: float = 0
) -> Card:
    rates = (gb_per_s * 1e9, tflops * 1e12, source, link * 1e9, network * 1e9)
    return Card(name, gb * 10**9, *rates)


# Data sheets print the sparse rate beside or instead of the dense one, which is half of it, and
# both directions of NVLink or PCIe in one number: here is one direction, in GB/s. The network of a
# card is its share of its maker's own machine: DGX A100 8 x 200 Gbit/s, DGX H100 and H200 8 x 400
# Gbit/s (their data sheets; those for China are taken to be alike). Others stand in any machine.
_PCIE_4, _PCIE_5 = 32, 64  # x16
CARDS = {
    card.name.lower(): card
    for card in (
        _card("A100-40GB", 40, 1555, 312, "NVIDIA A100 Tensor Core GPU data sheet (SXM)", 300, 25),
        _card("A100-80GB", 80, 2039, 312, "NVIDIA A100 Tensor Core GPU data sheet (SXM)", 300, 25),
        _card(
            "A100-PCIe-80GB", 80, 1935, 312, "NVIDIA A100 Tensor Core GPU data sheet (PCIe)",
            _PCIE_4,
        ),
        _card("A800-80GB", 80, 2039, 312, "NVIDIA A800 data sheet (SXM)", 200, 25),
        _card("A800-PCIe-80GB", 80, 1935, 312, "NVIDIA A800 data sheet (PCIe)", _PCIE_4),
        _card("A40-48GB", 48, 696, 149.7, "NVIDIA A40 data sheet", _PCIE_4),
        _card("H100-80GB", 80, 3350, 989, "NVIDIA H100 Tensor Core GPU data sheet (SXM)", 450, 50),
        _card(
            "H100-PCIe-80GB", 80, 2000, 756, "NVIDIA H100 Tensor Core GPU data sheet (PCIe)",
            _PCIE_5,
        ),
        _card("H800-80GB", 80, 3350, 989, "NVIDIA H800 data sheet (SXM)", 200, 50),
        _card(
            "H200-141GB", 141, 4800, 989, "NVIDIA H200 Tensor Core GPU data sheet (SXM)", 450, 50
        ),
        _card("L40S-48GB", 48, 864, 362, "NVIDIA L40S data sheet", _PCIE_4),
        _card("L4-24GB", 24, 300, 121, "NVIDIA L4 data sheet", _PCIE_4),
        _card("RTX-3090-24GB", 24, 936, 71, "NVIDIA GA102 white paper, appendix A", _PCIE_4),
        _card(
            "RTX-4090-24GB", 24, 1008, 165.2, "NVIDIA Ada architecture white paper, appendix A",
            _PCIE_4,
        ),
    )
}  # fmt: skip
RESERVE = 2 * 10**9  # a GPU's context, libraries' workspaces, graphs' launches (unmeasured)

_MEMINFO, _STATUS = Path("/proc/meminfo"), Path("/proc/self/status")
_GROUP = Path("/sys/fs/cgroup")
_GROUP_FILES = (  # limit, use, statistics: version 2 of control groups, and version 1
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
_PER_NODE = 8
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?|)(B?)", re.IGNORECASE)


def parse_count(text: str, setting: str) -> int:
    """ "100M" -> 100,000,000; a billion is B or G. Raises ConfigError naming the setting."""
    found = _NUMBER.fullmatch(text.strip())
    unit = found and found[2].upper()
    if not found or (unit and (found[3] or unit.endswith("I"))) or float(found[1]) <= 0:
        raise ConfigError(f"{setting} is {text!r}: give a number above 0 such as 100M or 1562500")
    return round(float(found[1]) * (_UNITS["G"] if found[3] else _UNITS[unit]))


def gb(size: float) -> str:
    """Bytes as a person reads them, in powers of ten."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.{1 if size >= 100 * factor else 2}f} {unit}"
    return f"{size:,.0f} B"


def parse_bytes(text: str, setting: str) -> int:
    """ "512GiB" -> bytes; GB is 10^9. Raises ConfigError naming the setting."""
    found = _NUMBER.fullmatch(text.strip())
    if not found or not found[3] or float(found[1]) <= 0:
        raise ConfigError(f"{setting} is {text!r}: give a size such as 512GiB or 80GB")
    unit = found[2].capitalize()
    return round(float(found[1]) * (_BINARY[unit] if unit.endswith("i") else _UNITS[unit]))


def parse_bandwidth(text: str, setting: str) -> float:
    """ "450GB/s" -> bytes a second. Raises ConfigError naming the setting."""
    try:
        return float(parse_bytes(text.removesuffix("/s"), setting))
    except ConfigError:
        raise ConfigError(f"{setting} is {text!r}: give bytes a second such as 450GB/s") from None


def parse_cards(text: str) -> tuple[Card, ...]:
    """ "2xA800-80GB", "2x48GB@864GB/s" (or "...@362TFLOPS"), "none". Raises ConfigError."""
    if text.strip().lower() == "none":
        return ()
    times = re.match(r"(\d+)x", text.strip())
    count, name = (int(times[1]), text.strip()[times.end() :]) if times else (1, text.strip())
    if count < 1:
        raise ConfigError(f"gpus is {text!r}: give none, or 1 card or more")
    return (CARDS.get(name.lower()) or _described(name, text),) * count


def parse_cluster(
    text: str, per_node: int | None = None, link: float | None = None, network: float | None = None
) -> Cluster:
    """ "64xH100-80GB" in machines of per_node (None: of 8, or all in one where there are fewer).

    link, network: instead of those of the table. Raises ConfigError for no card, for one whose peak
    is unknown, and where a bandwidth is that the cards need.
    """
    cards = parse_cards(text)
    if not cards or not cards[0].flops:
        raise ConfigError(
            f"gpus is {text!r}: give cards whose peak is known, such as 64xH100-80GB or "
            "8x48GB@864GB/s@362TFLOPS"
        )
    each = min(len(cards), _PER_NODE) if per_node is None else per_node
    card = cards[0]
    found = Cluster(
        card, len(cards), each,
        card.link if link is None else link, card.network if network is None else network,
    )  # fmt: skip
    for name, needed in (("link", each > 1), ("network", found.nodes > 1)):
        if needed and not getattr(found, name) > 0:
            raise ConfigError(
                f"gpus is {text!r}, and what a {card.name} sends over the {name} is not known: "
                f"give --{name}, such as --{name} 25GB/s"
            )
    return found


def named_as(device: str) -> Card | None:
    """The card of the table that a driver's name such as "NVIDIA A800-SXM4-80GB" means, if any."""
    words = device.upper().replace("NVIDIA", "").replace("GEFORCE", "").replace("-", " ").split()
    pcie = any(word in ("PCIE", "PCI") for word in words)
    for card in sorted(CARDS.values(), key=lambda card: "PCIe" not in card.name):
        parts = card.name.upper().split("-")
        size = parts.pop()
        sized = size in words or not any(word.endswith("GB") for word in words)
        if sized and ("PCIE" in parts) == pcie and set(parts) <= set(words):
            return card
    return None


def _described(name: str, text: str) -> Card:
    """A card given by its numbers: SIZE@BANDWIDTH, or SIZE@BANDWIDTH@PEAK."""
    parts = name.split("@")
    if not 2 <= len(parts) <= 3 or not _NUMBER.fullmatch(parts[0]):
        raise ConfigError(
            f"gpus names an unknown card in {text!r}: known are "
            f"{', '.join(card.name for card in CARDS.values())}; give another one as "
            "SIZE@BANDWIDTH, such as 2x48GB@864GB/s (or 2x48GB@864GB/s@362TFLOPS)"
        )
    size = parse_bytes(parts[0], "gpus")
    bandwidth = parse_bandwidth(parts[1], "bandwidth in gpus")
    card = Card(name, size, bandwidth, source="as given")
    if len(parts) == 2:
        return card
    peak = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*TFLOPS", parts[2], re.IGNORECASE)
    if not peak:
        raise ConfigError(f"gpus has the peak {parts[2]!r} in {text!r}: give it as 362TFLOPS")
    return replace(card, flops=float(peak[1]) * 1e12)


def this_machine(devices: Iterable[str] = ()) -> Machine:
    """devices: those that compute, one per rank, such as "cuda:0" ("cpu" is left out).

    Memory: what is free, within the limit of a container, and what this process holds already (a
    loaded model), since a plan counts all of it. Speeds are the table's where it has the device's
    name. Raises ConfigError for a device that is not there.
    """
    cards = tuple(_card_of(name) for name in devices if name != "cpu")
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


def _card_of(device: str) -> Card:
    import torch

    try:
        name = torch.cuda.get_device_name(device)
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(f"device {device!r} cannot be used: {error}") from error
    known = named_as(name)
    return Card(name, free, *((known.bandwidth, known.flops, known.source) if known else ()))
