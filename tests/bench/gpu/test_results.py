"""Rows say what was measured, where, beside what; what fails costs its own row."""

import json

import pytest
import torch

from data_pipeline.errors import DataError
from msa_train.bench.gpu.results import (
    DONE,
    Measured,
    PartResult,
    Provenance,
    Results,
    Row,
    measured,
    reason,
    wheel_of,
)


def part(card="A card", toy=False, state=DONE):
    row = Row("read", "GB/s", 2.0, 4.0, 0.5, detail=(("one", 1.0),), card=card, toy=toy)
    return PartResult(state, 1.5, (row,))


def test_a_ratio_is_the_share_of_the_floor_that_is_reached():
    time = measured("t", "ms", lambda: Measured(4.0, 1.0, "note"))
    rate = measured("r", "tokens/s", lambda: Measured(1234567.0, 2e6))
    assert (time.ratio, time.note, rate.ratio, rate.value) == (0.25, "note", 0.6173, 1235000.0)
    assert measured("n", "ms", lambda: Measured(0.0, 1.0)).ratio is None
    assert measured("n", "GB/s", lambda: Measured(3.0)).floor is None


def test_what_fails_is_a_row_with_its_reason(capsys):
    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    def lacks():
        raise ModuleNotFoundError("No module named 'megatron'", name="megatron.core")

    row = measured("large", "ms", fails)
    assert row.value is None and row.failed == "OutOfMemoryError: CUDA out of memory."
    assert measured("step", "ms", lacks).failed == "needs the wheel megatron-core"
    assert "large: OutOfMemoryError" in capsys.readouterr().err
    assert reason(AssertionError()) == "AssertionError"
    assert wheel_of("liger_kernel.ops") == "liger-kernel"


def test_results_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "there" / "gpu.json"
    results = Results.read(path).with_part("route", part()).with_part("memory", part(state="?"))
    results.write(path)
    assert Results.read(path) == results
    given = json.loads(path.read_text())
    row = given["parts"]["route"]["rows"][0]
    assert {"what", "value", "unit", "floor", "ratio", "card", "driver", "torch", "triton"} <= {
        *row
    }
    row["later"] = 1  # a field of another version
    path.write_text(json.dumps(given))
    assert Results.read(path) == results
    for text in ("[]", "{", '{"parts": {"route": 3}}'):
        path.write_text(text)
        with pytest.raises(DataError, match=r"gpu\.json is no result of `msa bench gpu`"):
            Results.read(path)


def test_a_part_is_kept_on_its_card_alone():
    assert part().kept_on("A card", toy=False)
    assert not part().kept_on("Another", toy=False)
    assert not part().kept_on("A card", toy=True)
    assert not part(state="cut off").kept_on("A card", toy=False)
    assert not PartResult(DONE, 0.0, ()).kept_on("A card", toy=False)


def test_the_machine_is_named():
    here = Provenance.here()
    assert here.torch == torch.__version__ and here.card
    assert torch.cuda.is_available() or (here.driver == "none" and here.card.endswith("CPU"))
