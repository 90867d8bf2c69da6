"""The battery's parts on a device that is pretended: no tensor of the host where a kernel runs.

Times are not taken; steps that are captured are left out, and so is what differentiates through
torch's own attention.
"""

from dataclasses import replace

import pytest
import torch

from msa_train.bench import runner
from msa_train.bench.floor import Floor
from msa_train.bench.gpu import memory
from msa_train.bench.gpu.parts import PARTS, Work
from msa_train.bench.gpu.sizes import TOY
from tests.pretend.cuda import counting, pretended_cuda


@pytest.fixture
def card(monkeypatch):
    """Of which the battery asks a little more than the models do."""
    with pretended_cuda():
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr("gc.collect", lambda: 0)  # after each row there, and slow here
        monkeypatch.setattr(Floor, "measured", lambda dtype: Floor(1e6, 1e6))
        monkeypatch.setattr(runner, "_event_ms", lambda run: (run(), 1.0)[1])
        yield


@pytest.mark.parametrize("name", ["route", "encode", "memory"])
def test_a_part_mixes_no_devices(name, card):
    sizes = replace(TOY, segments=(1, 3), questions=(3,), decoded=2)
    rows = list(PARTS[name].run(Work(sizes, 60.0)))
    assert len(rows) == len(PARTS[name].planned(sizes))
    failed = {row.what: row.failed for row in rows if row.failed}
    assert {what for what in failed if not what.startswith("decoding")} == set(), failed


def test_states_are_fetched_in_one_copy_a_layer_for_which_nobody_waits(card):
    bed = memory._Bed(TOY)
    view = bed.view_of(5)
    for layer, places in zip(bed._layers, bed._drawn_places(3), strict=True):
        with counting() as counts:
            view.searcher.states(layer, places)
        assert (counts.launches, counts.copies, counts.syncs) == (0, 1, 0), counts
