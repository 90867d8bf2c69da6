"""Tile sizes: chosen by card, dtype and width, never by length."""

from types import SimpleNamespace

import pytest
import torch
from msa_kernels import tiles


@pytest.mark.parametrize(
    ("major", "shared_kb", "expected"),
    [(9, 228, "hopper"), (8, 164, "ampere"), (8, 100, "consumer"), (12, 100, "consumer")],
)
def test_cards_are_told_apart(monkeypatch, major, shared_kb, expected):
    card = SimpleNamespace(major=major, shared_memory_per_multiprocessor=shared_kb << 10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(tiles, "interpreting", lambda: False)
    assert tiles.generation.__wrapped__(torch.device("cuda")) == expected
    assert tiles.generation.__wrapped__(torch.device("cpu")) == "interpreter"


def test_a_limit_makes_tiles_no_larger():
    free = tiles.tiles("score", torch.device("cpu"))
    assert free == {"T": 16, "C": 16, "V": 16, "num_warps": 4, "num_stages": 1}
    assert tiles.tiles("score", torch.device("cpu"), V=8, C=64) == {**free, "V": 8}


def test_every_card_has_every_kind():
    assert {frozenset(kinds) for kinds in tiles.TILES.values()} == {
        frozenset(("score", "attend", "attend_backward"))
    }


@pytest.mark.parametrize(
    ("width", "itemsize", "expected"),
    [(128, 2, (128, 64)), (64, 2, (128, 64)), (256, 2, (64, 32)), (128, 4, (32, 16)),
     (512, 4, (16, 16))],
)  # fmt: skip
def test_wide_rows_and_float32_shrink_attention_tiles(width, itemsize, expected):
    options = {"M": 128, "N": 64, "num_warps": 8}
    found = tiles.shrunk(options, width, itemsize)
    assert (found["M"], found["N"], found["num_warps"]) == (*expected, 8)
