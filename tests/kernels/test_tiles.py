"""Tile sizes: chosen by card, dtype and width, never by length."""

import itertools
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


def test_every_card_has_every_kind():
    listed = [*tiles.TILES.values(), *tiles.FLOAT32.values()]
    assert {frozenset(each) for each in listed} == {
        frozenset(("attend", "query_gradient", "key_gradient"))
    }
    assert all(each.keys() == {1, 2, 4} for each in tiles.SCORES.values())
    assert tiles.SCORES.keys() == {*tiles.TILES, "interpreter"}


def on_card(monkeypatch, name):
    monkeypatch.setattr(tiles, "generation", lambda device: name)


@pytest.mark.parametrize(
    ("tokens", "side"), [(1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (64, 64), (500, 64)]
)
def test_a_short_question_takes_a_low_tile(monkeypatch, tokens, side):
    on_card(monkeypatch, "hopper")
    keys, query = torch.empty(9, 1024).bfloat16(), torch.empty(tokens, 1024).bfloat16()
    assert tiles.score_tiles(keys, query, 1, tokens, 0)["T"] == side


@pytest.mark.parametrize("name", ["hopper", "ampere", "consumer"])
@pytest.mark.parametrize("keys", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_two_blocks_of_scores_fit_where_two_stages_do(monkeypatch, name, keys):
    on_card(monkeypatch, name)
    keys = torch.empty(9, 1024).to(keys)
    query = torch.empty(9, 1024, dtype=torch.float32 if keys.element_size() == 4 else torch.float16)
    for parts, rows in itertools.product((1, 2), (16, 32, 64)):
        found = tiles.score_tiles(keys, query, parts, rows, 128 if keys.element_size() == 1 else 0)
        side = found["C"] * keys.element_size() + parts * found["T"] * query.element_size()
        assert found["num_stages"] >= 2
        shared = tiles._BLOCK_SHARED[name] << 10
        assert found["num_stages"] * found["V"] * side <= shared


def test_where_every_score_is_written_tiles_are_smaller(monkeypatch):
    on_card(monkeypatch, "hopper")
    keys, query = torch.empty(9, 1024).bfloat16(), torch.empty(99, 1024).bfloat16()
    found = tiles.score_tiles(keys, query, 1, 99, 0, each_row=True)
    assert (found["T"], found["C"], found["num_warps"]) == (32, 128, 4)


def test_tiles_are_no_wider_than_rows_and_heads():
    keys, query = torch.empty(9, 24), torch.empty(9, 24)
    assert tiles.score_tiles(keys, query, 1, 9, 0)["V"] == 16
    assert tiles.score_tiles(keys, query, 1, 9, 8)["V"] == 8
    assert tiles.vector_tiles(keys, 3, 0)["T"] == 4


@pytest.mark.parametrize(
    ("name", "kind", "width", "itemsize", "expected"),
    [
        ("hopper", "attend", 128, 2, (128, 64)),
        ("hopper", "attend", 64, 2, (128, 64)),
        ("hopper", "attend", 256, 2, (64, 32)),
        ("hopper", "query_gradient", 128, 2, (64, 64)),
        ("hopper", "key_gradient", 128, 2, (32, 64)),
        ("ampere", "key_gradient", 64, 2, (32, 32)),
        ("ampere", "key_gradient", 256, 4, (16, 32)),
        ("consumer", "key_gradient", 256, 4, (16, 16)),
        ("hopper", "attend", 512, 4, (16, 16)),
    ],
)
def test_wide_rows_and_float32_take_smaller_attention_tiles(
    monkeypatch, name, kind, width, itemsize, expected
):
    on_card(monkeypatch, name)
    found = tiles.attention_tiles(kind, torch.device("cpu"), width, itemsize)
    assert (found["M"], found["N"]) == expected
