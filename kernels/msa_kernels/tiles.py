"""Tile sizes of the Triton kernels: a short list per GPU generation and kind of kernel.

Nobody has timed them on a card yet. No length is looked at: a new sequence length never compiles or
tunes anything.
"""

from __future__ import annotations

import functools

import torch

from msa_kernels.dispatch import interpreting

# generation: {kind: (tiles, warps, stages)}. T query tokens, C chunks, V values of a product of
# scores; M query rows, N keys of an attention tile.
TILES = {
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
_SHARED_BYTES = 160 << 10  # cards of generation 8 or 9 with less shared memory are consumer cards


@functools.cache
def generation(device: torch.device) -> str:
    """hopper (H100, H200), ampere (A100, A800), consumer, or interpreter (no card at all)."""
    if interpreting() or device.type != "cuda":
        return "interpreter"
    found = torch.cuda.get_device_properties(device)
    if found.shared_memory_per_multiprocessor < _SHARED_BYTES:
        return "consumer"
    return "hopper" if found.major >= 9 else "ampere"


def tiles(kind: str, device: torch.device, **limits: int) -> dict[str, int]:
    """Launch options of a kind of kernel; limits: no tile side is larger than these."""
    sizes, warps, stages = TILES[generation(device)][kind]
    sizes = {name: min(size, limits.get(name, size)) for name, size in sizes.items()}
    return {**sizes, "num_warps": warps, "num_stages": stages}


def shrunk(options: dict[str, int], width: int, itemsize: int) -> dict[str, int]:
    """Attention tiles M and N for rows of `width` values of `itemsize` bytes.

    The list is for rows of 128 values of two bytes. Wider ones halve the tiles; so does float32,
    twice: its products do not run on tensor cores, and fill the registers.
    """
    halvings = max(0, (width - 1).bit_length() - 7) + (itemsize - 2)
    return options | {name: max(16, options[name] >> halvings) for name in ("M", "N")}
