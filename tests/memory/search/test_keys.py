"""Keys in every form: how far they may be off, and how long they are, is never understated."""

from itertools import pairwise

import pytest
import torch

from msa_train.memory.search.keys import LayerKeys, chunks_of
from msa_train.memory.search.settings import KEY_FORMS
from msa_train.model.config import RouterConfig
from tests.memory.search.random_memory import HEADS, ROUTER, WIDTH, memory, questions


@pytest.mark.parametrize("form", KEY_FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_score_is_off_by_more_than_the_bound(form, dtype):
    keys, cu = memory([3, 1, 2, 5, 1, 4], 0)
    keys = keys.to(dtype)
    ours = LayerKeys(keys, cu, ROUTER, HEADS, form)
    query, query_cu = questions([1] * 40, 1)
    exact = torch.stack(
        [(query.double() @ keys[a:b].double().T).amax(1) for a, b in pairwise(cu)],
        1,
    )
    sums = 200 * 2.0**-23 * ours.norm
    off = (ours.scores(query, query_cu).double() - exact).abs()
    assert (off <= query.norm(dim=1)[:, None] * (torch.as_tensor(ours.error) + sums)).all()
    assert (keys.float().norm(dim=1) <= ours.norm).all()
    if form in ("int8", "fp8"):
        assert off.max() > 1e-4  # or nothing was rounded
    assert ours.documents == 6 and ours.longest_document == 5


def test_the_longest_key_is_found_block_by_block(monkeypatch):
    monkeypatch.setattr("msa_train.memory.search.keys.BLOCK", 2)
    keys = torch.ones(5, WIDTH) * torch.tensor([1.0, 2, 9, 1, 3])[:, None]
    router = RouterConfig(top_k=3, similarity="dot")
    assert LayerKeys(keys, torch.arange(6), router, HEADS).norm >= 9 * WIDTH**0.5
    assert LayerKeys(keys[:0], torch.zeros(1).long(), router, HEADS).norm == 0


def test_what_is_searched_takes_the_bytes_of_its_form():
    keys, cu = memory([3, 1, 2], 0)
    found = {form: LayerKeys(keys, cu, ROUTER, HEADS, form).searched_bytes for form in KEY_FORMS}
    assert found["stored"] == found["float32"] == 6 * WIDTH * 4
    assert found["bfloat16"] == 6 * WIDTH * 2
    assert found["int8"] == found["fp8"] == 6 * (WIDTH + 4 * HEADS + 8)  # scales, error and norm


def test_chunks_come_document_by_document():
    cu = torch.tensor([0, 3, 4, 6])
    assert chunks_of(torch.tensor([2, 0, 0]), cu).tolist() == [4, 5, 0, 1, 2, 0, 1, 2]
    assert chunks_of(torch.tensor([], dtype=torch.int64), cu).tolist() == []
