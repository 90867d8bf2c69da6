"""Tile sizes: a short list per GPU generation and operation, chosen by dtype and width alone.

MEASURED names the cards on which somebody timed them. No length is looked at: a new sequence
length never compiles or tunes anything.
"""

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor

from msa_kernels.dispatch import interpreting

MEASURED: tuple[str, ...] = ()  # nobody has timed these on a card yet

# generation: {operation: (tiles, warps, stages)}. T query tokens, C chunks, V values of a tile
# product; M query rows, N keys of an attention tile.
_TILES = {
    "hopper": {
        "score": ({"T": 64, "C": 256, "V": 64}, 8, 4),
        "attend": ({"M": 128, "N": 64}, 8, 3),
        "attend_backward": ({"M": 32, "N": 64}, 8, 2),
    },
    "ampere": {
        "score": ({"T": 64, "C": 128, "V": 64}, 4, 4),
        "attend": ({"M": 128, "N": 64}, 8, 3),
        "attend_backward": ({"M": 32, "N": 64}, 8, 2),
    },
    "consumer": {
        "score": ({"T": 32, "C": 128, "V": 32}, 4, 3),
        "attend": ({"M": 64, "N": 32}, 4, 2),
        "attend_backward": ({"M": 32, "N": 32}, 4, 2),
    },
    # Small, so that tests cross every edge; the interpreter knows neither warps nor stages.
    "interpreter": {
        "score": ({"T": 16, "C": 16, "V": 16}, 4, 1),
        "attend": ({"M": 16, "N": 16}, 4, 1),
        "attend_backward": ({"M": 16, "N": 16}, 4, 1),
    },
}
_SHARED_BYTES = 160 << 10  # below which a card of generation 8 or 9 is a consumer's


@functools.cache
def generation(device: torch.device) -> str:
    """hopper (H100, H200), ampere (A100, A800) or consumer."""
    if interpreting() or device.type != "cuda":
        return "interpreter"
    found = torch.cuda.get_device_properties(device)
    if found.shared_memory_per_multiprocessor < _SHARED_BYTES:
        return "consumer"
    return "hopper" if found.major >= 9 else "ampere"


def tiles(operation: str, device: torch.device, **limits: int) -> dict[str, int]:
    """Launch options of an operation; limits: no tile side is larger than these."""
    sizes, warps, stages = _TILES[generation(device)][operation]
    sizes = {name: min(size, limits.get(name, size)) for name, size in sizes.items()}
    return {**sizes, "num_warps": warps, "num_stages": stages}


def score_tiles(keys: Tensor, head: int | None) -> dict[str, int]:
    """Options of the scoring kernels: float32 tiles are half as wide, scales want whole heads."""
    width = 32 if keys.dtype == torch.float32 else 64
    width = min(width, max(16, triton.next_power_of_2(keys.shape[1])))
    if head is not None:
        width = min(width, head & -head)  # the largest power of two that divides it
    return {**tiles("score", keys.device, V=width), "HEAD": head or 0}


def attend_tiles(operation: str, q: Tensor, width: int) -> dict[str, int]:
    """Options of attention for rows of `width` values."""
    return shrunk(tiles(operation, q.device), width, q.element_size())


def shrunk(options: dict[str, int], width: int, itemsize: int) -> dict[str, int]:
    """The list is for rows of 128 values of two bytes. Wider ones halve the tiles; so does
    float32, twice: its products are not those of tensor cores and fill the registers."""
    halvings = max(0, (width - 1).bit_length() - 7) + (itemsize - 2)
    return options | {name: max(16, options[name] >> halvings) for name in ("M", "N")}
