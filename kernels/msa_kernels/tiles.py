"""Tile sizes of the Triton kernels: a short list per GPU generation and kind of kernel.

Nobody has timed them on a card yet. No length is looked at: a new sequence length never compiles or
tunes anything.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from msa_kernels.dispatch import interpreting

# generation: {bytes of a key: ((T query rows, C chunks, V values of a product, warps), ...)}, T
# ascending. Two blocks fit on a multiprocessor, so that one reads while the other reduces. Keys
# that registers widen (one byte) or multiply (float32) leave room for fewer of them.
SCORES = {
    "hopper": {
        1: ((16, 128, 64, 4), (32, 128, 64, 4), (64, 128, 64, 4)),
        2: ((16, 256, 64, 8), (32, 256, 64, 8), (64, 128, 64, 4)),
        4: ((16, 64, 32, 4), (32, 64, 32, 4), (64, 64, 32, 4)),
    },
    "ampere": {
        1: ((16, 128, 64, 4), (32, 128, 64, 4), (64, 128, 32, 4)),
        2: ((16, 128, 64, 4), (32, 128, 64, 4), (64, 128, 32, 4)),
        4: ((16, 64, 32, 4), (32, 64, 32, 4), (64, 64, 32, 4)),
    },
    "consumer": {
        1: ((16, 128, 64, 4), (32, 128, 64, 4), (64, 128, 32, 4)),
        2: ((16, 128, 64, 4), (32, 128, 32, 4), (64, 128, 32, 4)),
        4: ((16, 64, 32, 4), (32, 64, 32, 4), (64, 64, 32, 4)),
    },
    # Small, so that tests cross every edge; the interpreter knows neither warps nor stages.
    "interpreter": dict.fromkeys((1, 2, 4), ((16, 16, 16, 4),)),
}
# Shared memory of a block, in KB, where two are to fit.
_BLOCK_SHARED = {"hopper": 113, "ampere": 81, "consumer": 49, "interpreter": 1}
_MOST_STAGES = 5
_MOST_EACH = 32  # query rows at once, where every score of a tile is written
VECTORS = {"C": 16, "V": 256, "num_warps": 4}  # a tile of keys that is multiplied with few vectors
_INTERPRETED_VECTORS = {"C": 16, "V": 16, "num_warps": 4}

# generation: {kind: (tiles, warps, stages)}. M query rows, N keys of an attention tile, for rows of
# up to 128 values of two bytes.
TILES = {
    "hopper": {
        "attend": ({"M": 128, "N": 64}, 8, 3),
        "query_gradient": ({"M": 64, "N": 64}, 8, 2),
        "key_gradient": ({"M": 32, "N": 64}, 8, 2),
    },
    "ampere": {
        "attend": ({"M": 128, "N": 64}, 8, 3),
        "query_gradient": ({"M": 32, "N": 64}, 8, 2),
        "key_gradient": ({"M": 32, "N": 64}, 8, 2),
    },
    "consumer": {
        "attend": ({"M": 64, "N": 32}, 4, 2),
        "query_gradient": ({"M": 32, "N": 32}, 8, 2),
        "key_gradient": ({"M": 32, "N": 32}, 4, 2),
    },
}
# The same for rows of up to 64 values, where the others spill.
NARROW = {name: {"key_gradient": ({"M": 32, "N": 32}, 8, 2)} for name in ("ampere", "consumer")}
# float32, whose products do not run on tensor cores and fill the registers: on every card, for rows
# of up to 128 and of up to 256 values.
FLOAT32 = {
    128: {
        "attend": ({"M": 16, "N": 32}, 8, 1),
        "query_gradient": ({"M": 16, "N": 16}, 8, 2),
        "key_gradient": ({"M": 16, "N": 32}, 8, 1),
    },
    256: {
        "attend": ({"M": 16, "N": 16}, 8, 1),
        "query_gradient": ({"M": 16, "N": 16}, 8, 2),
        "key_gradient": ({"M": 16, "N": 32}, 8, 1),
    },
}
_LEAST = {"M": 16, "N": 16}  # also what the interpreter takes, so that tests cross every edge
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


def score_tiles(
    keys: Tensor, query: Tensor, parts: int, rows: int, head: int, each_row: bool = False
) -> dict[str, int]:
    """Launch options of scores: T, C, V, warps, and as many stages as leave room for two blocks.

    query in the dtype that is multiplied, in `parts` parts; rows: how many a context has, more or
    less. head: values that share a scale (0: there are no scales), of which V is a part. each_row:
    every score of a tile is written, as a number of 64 bits, which more registers have to hold.
    """
    name = generation(keys.device)
    listed = SCORES[name][keys.element_size()]
    rows = min(rows, _MOST_EACH) if each_row else rows
    side, chunks, values, warps = next((each for each in listed if each[0] >= rows), listed[-1])
    if each_row:
        chunks, warps = min(chunks, 128), 4
    values = min(values, _values(keys.shape[1], head))
    stage = values * (chunks * keys.element_size() + parts * side * query.element_size())
    stages = max(1, min(_MOST_STAGES, (_BLOCK_SHARED[name] << 10) // stage))
    return {"T": side, "C": chunks, "V": values, "num_warps": warps, "num_stages": stages}


def vector_tiles(keys: Tensor, rows: int, head: int) -> dict[str, int]:
    """Launch options of the products of keys with `rows` vectors; head as for score_tiles."""
    options = _INTERPRETED_VECTORS if generation(keys.device) == "interpreter" else VECTORS
    values = min(options["V"], _values(keys.shape[1], head))
    return {**options, "T": 1 << (rows - 1).bit_length(), "V": values}


def _values(width: int, head: int) -> int:
    """How many of `width` values a tile takes at most: no product is narrower than 16, and no tile
    of quantised keys crosses a head."""
    return head & -head if head else max(16, 1 << (width - 1).bit_length())


def attention_tiles(kind: str, device: torch.device, width: int, itemsize: int) -> dict[str, int]:
    """Launch options of a kind of attention kernel, for rows of `width` values of `itemsize` bytes.

    Rows that are wider than the lists are for halve the tiles.
    """
    name, wide = generation(device), width > 128
    if name == "interpreter":
        return {**_LEAST, "num_warps": 4, "num_stages": 1}
    listed = FLOAT32[256 if wide else 128] if itemsize == 4 else TILES[name]
    if itemsize == 2 and width <= 64:
        listed = listed | NARROW.get(name, {})
    sizes, warps, stages = listed[kind]
    halvings = max(0, (width - 1).bit_length() - (8 if itemsize == 4 else 7))
    if itemsize == 4 and wide and name == "consumer":
        halvings += 1  # less shared memory
    sizes = {side: max(_LEAST[side], size >> halvings) for side, size in sizes.items()}
    return {**sizes, "num_warps": warps, "num_stages": stages}
