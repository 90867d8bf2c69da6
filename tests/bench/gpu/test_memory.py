"""A memory of random states: searched in any number of segments with the same result."""

import pytest
import torch

from msa_train.bench.gpu import memory
from msa_train.bench.gpu.sizes import TOY
from msa_train.errors import BankError
from tests.bench.gpu.toy import toy_rows


def test_everything_from_the_question_to_its_tokens(monkeypatch):
    found, planned = toy_rows("memory", monkeypatch)
    assert found.keys() == planned.keys()
    keys = found["router keys on the card, beside the planner's"]
    assert keys.value == pytest.approx(keys.floor, rel=0.01)
    assert found["decoding, 3 questions"].value > 0


def test_segments_find_what_one_finds_and_bring_its_states():
    torch.manual_seed(0)
    bed = memory._Bed(TOY)
    bed.share_keys()
    bed._one = bed._drawn_keys()
    query, cu = bed._query(3)
    one, many = (bed.view_of(segments) for segments in (1, 5))
    (first, k, v), (again, other_k, other_v) = (
        view.search(bed._layers[0], query, cu) for view in (one, many)
    )
    assert torch.equal(first.documents, again.documents)
    assert torch.equal(k, other_k) and torch.equal(v, other_v)
    scores = (bed._one.double() @ query.double().T).unflatten(1, (3, -1)).amax(2).T
    best = scores.sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(first.documents, best[:, : TOY.large.router.top_k])
    places = first.documents.unique()
    assert torch.equal(k[:2], bed.host.k[places][:2])


def test_layers_have_keys_of_their_own_until_they_share_them():
    bed = memory._Bed(TOY)
    layers = list(bed.keys.values())
    assert not torch.equal(layers[0], layers[1])
    held = layers[0]
    bed.share_keys()
    view = bed.view_of(5)
    assert bed._one is held
    first = view.searcher.parts[0].keys
    assert first[bed._layers[0]] is first[bed._layers[1]]


def test_what_is_fetched_is_compared_with_its_checksum_as_a_bank_does():
    bed = memory._Bed(TOY)
    layer, places = bed._layers[0], torch.tensor([3, 70, 1998])
    found = bed.view.searcher.states(layer, places)
    for name in ("k", "v", "key"):
        assert torch.equal(getattr(found, name), getattr(bed.host, name)[places])
    bed.host.v[[3, 71], 1, 2] += 1
    bed.view.searcher.states(layer, places)  # known
    with pytest.raises(BankError, match="not what was drawn"):
        bed.view.searcher.states(layer, places + 1)
