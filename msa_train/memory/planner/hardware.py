"""Memory and speed of GPUs, as their makers print them; sizes and rates as a person types them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from msa_train.errors import ConfigError


@dataclass(frozen=True)
class Card:
    """bytes: of its memory. bandwidth: bytes per second (0: unknown). flops: bfloat16 products per
    second on dense matrices (0: unknown). source: where the numbers stand."""

    name: str
    bytes: int
    bandwidth: float = 0.0
    flops: float = 0.0
    source: str = ""


def _card(name: str, gb: int, gb_per_s: float, tflops: float, source: str) -> Card:
    return Card(name, gb * 10**9, gb_per_s * 1e9, tflops * 1e12, source)


# Data sheets print the sparse rate beside or instead of the dense one, which is half of it.
CARDS = {
    card.name.lower(): card
    for card in (
        _card("A100-40GB", 40, 1555, 312, "NVIDIA A100 Tensor Core GPU data sheet (SXM)"),
        _card("A100-80GB", 80, 2039, 312, "NVIDIA A100 Tensor Core GPU data sheet (SXM)"),
        _card("A100-PCIe-80GB", 80, 1935, 312, "NVIDIA A100 Tensor Core GPU data sheet (PCIe)"),
        _card("A800-80GB", 80, 2039, 312, "NVIDIA A800 data sheet (SXM)"),
        _card("A800-PCIe-80GB", 80, 1935, 312, "NVIDIA A800 data sheet (PCIe)"),
        _card("A40-48GB", 48, 696, 149.7, "NVIDIA A40 data sheet"),
        _card("H100-80GB", 80, 3350, 989, "NVIDIA H100 Tensor Core GPU data sheet (SXM)"),
        _card("H100-PCIe-80GB", 80, 2000, 756, "NVIDIA H100 Tensor Core GPU data sheet (PCIe)"),
        _card("H800-80GB", 80, 3350, 989, "NVIDIA H800 data sheet (SXM)"),
        _card("H200-141GB", 141, 4800, 989, "NVIDIA H200 Tensor Core GPU data sheet (SXM)"),
        _card("L40S-48GB", 48, 864, 362, "NVIDIA L40S data sheet"),
        _card("L4-24GB", 24, 300, 121, "NVIDIA L4 data sheet"),
        _card("RTX-3090-24GB", 24, 936, 71, "NVIDIA GA102 white paper, appendix A"),
        _card("RTX-4090-24GB", 24, 1008, 165.2, "NVIDIA Ada architecture white paper, appendix A"),
    )
}

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?|)(B?)", re.IGNORECASE)


def parse_count(text: str, setting: str) -> int:
    """ "100M" -> 100,000,000. Raises ConfigError naming the setting."""
    found = _NUMBER.fullmatch(text.strip())
    if not found or found[3] or found[2].lower().endswith("i") or float(found[1]) <= 0:
        raise ConfigError(f"{setting} is {text!r}: give a number above 0 such as 100M or 1562500")
    return round(float(found[1]) * _UNITS[found[2].upper()])


def parse_bytes(text: str, setting: str) -> int:
    """ "512GiB" -> bytes; GB is 10^9. Raises ConfigError naming the setting."""
    found = _NUMBER.fullmatch(text.strip())
    if not found or not found[3] or float(found[1]) <= 0:
        raise ConfigError(f"{setting} is {text!r}: give a size such as 512GiB or 80GB")
    unit = found[2].capitalize()
    return round(float(found[1]) * (_BINARY[unit] if unit.endswith("i") else _UNITS[unit]))


def parse_cards(text: str) -> tuple[Card, ...]:
    """ "2xA800-80GB", "2x48GB@864GB/s" (or "...@362TFLOPS"), "none". Raises ConfigError."""
    if text.strip().lower() == "none":
        return ()
    times = re.match(r"(\d+)x", text.strip())
    count, name = (int(times[1]), text.strip()[times.end() :]) if times else (1, text.strip())
    if count < 1:
        raise ConfigError(f"gpus is {text!r}: give none, or 1 card or more")
    return (CARDS.get(name.lower()) or _described(name, text),) * count


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
    bandwidth = parse_bytes(parts[1].removesuffix("/s"), "bandwidth in gpus")
    card = Card(name, size, float(bandwidth), source="as given")
    if len(parts) == 2:
        return card
    peak = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*TFLOPS", parts[2], re.IGNORECASE)
    if not peak:
        raise ConfigError(f"gpus has the peak {parts[2]!r} in {text!r}: give it as 362TFLOPS")
    return replace(card, flops=float(peak[1]) * 1e12)
