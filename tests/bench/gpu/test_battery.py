"""Parts of the battery: each costs only itself, and what it measured stays."""

import json
import math
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from msa_train.bench.gpu import battery
from msa_train.bench.gpu.battery import Sitting
from msa_train.bench.gpu.parts import PARTS
from msa_train.bench.gpu.results import DONE, PartResult, Provenance, Results, Row
from msa_train.errors import ConfigError, NoDeviceError

HERE = Provenance("A card", "1", "2", "3")


def acts(name, work):
    """In place of next_row, in a part's process: what befalls a part."""
    rows = iter([Row("first", "ms", 1.0), None])

    def ask():
        row = next(rows)
        if row is None and name == "route":
            os._exit(3)
        if row is None and name == "memory":
            time.sleep(600)
        return row

    return ask


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(battery, "in_process", lambda run: HERE)
    monkeypatch.setattr(battery, "_LEAST_S", 0.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_parts_that_crash_or_hang_cost_only_themselves(here, monkeypatch, tmp_path):
    out, leapt, asked = tmp_path / "gpu.json", [], battery._asked
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(leapt))
    monkeypatch.setattr(battery, "time", clock)
    monkeypatch.setattr(battery, "next_row", acts)

    def hangs_for_an_hour(name, work, end):
        for row in asked(name, work, end):
            yield row
            leapt.append(3600.0 if name == "memory" else 0.0)

    monkeypatch.setattr(battery, "_asked", hangs_for_an_hour)
    found = battery.measure(Sitting(("route", "memory"), minutes=600, toy=True), out)
    states = {name: part.state for name, part in found.parts.items()}
    assert "died" in states["route"] and "was not done" in states["memory"]
    for part in found.parts.values():
        row = part.rows[0]
        assert (row.what, row.value, row.card, row.toy) == ("first", 1.0, "A card", True)
    assert Results.read(out) == found and len(battery.failures(found)) == 2


def test_rows_that_a_part_left_out_are_named(here, monkeypatch, tmp_path):
    monkeypatch.setattr(battery, "_asked", lambda *_: iter([Row("first", "ms", 1.0)]))
    found = battery.measure(Sitting(("encode",), toy=True), tmp_path / "gpu.json")
    assert found.parts["encode"].state == DONE
    said = battery.failures(found)
    assert len(said) == len(PARTS["encode"].planned(battery.TOY))
    assert "encode: 0.6B geometry" in said[-1]


def test_what_was_measured_on_this_card_is_kept(here, monkeypatch, tmp_path):
    out, asked = tmp_path / "gpu.json", []

    def rows(name, work, end):
        asked.append(name)
        yield from (Row(what, unit, 1.0) for what, unit in PARTS[name].planned(work.sizes))

    monkeypatch.setattr(battery, "_asked", rows)
    battery.measure(Sitting(("route", "encode"), toy=True), out)
    battery.measure(Sitting(("accuracy", "route"), toy=True), out)
    assert asked == ["route", "encode", "accuracy"]
    battery.measure(Sitting(("route",), toy=True, again=True), out)
    assert asked[3:] == ["route"]
    monkeypatch.setattr(battery, "in_process", lambda run: Provenance("Another", "1", "2", "3"))
    battery.measure(Sitting(("route",), toy=True), out)
    assert asked[4:] == ["route"]
    assert [*Results.read(out).parts] == ["route", "encode", "accuracy"]


def test_when_the_time_is_up_parts_are_not_begun(here, monkeypatch, tmp_path):
    monkeypatch.setattr(battery, "_LEAST_S", 10.0)
    found = battery.measure(Sitting(("route",), minutes=0.1, toy=True), tmp_path / "gpu.json")
    assert found.parts["route"].state == "not begun: no time was left"


def test_an_attempt_that_ends_early_loses_nothing_of_the_one_before(here, monkeypatch, tmp_path):
    out, planned = tmp_path / "gpu.json", PARTS["route"].planned(battery.TOY)

    def rows(name, work, end):
        yield from (Row(what, unit, value) for what, unit in planned[:count])
        if count < len(planned):
            raise RuntimeError("the card is gone")

    def measure(minutes=25.0):
        return battery.measure(Sitting(("route",), minutes, toy=True, again=True), out)

    monkeypatch.setattr(battery, "_asked", rows)
    count, value = len(planned), 1.0
    measure()
    count, value = 2, 2.0
    found = measure().parts["route"]
    assert "the card is gone" in found.state
    assert [row.value for row in found.rows] == [2.0] * 2 + [1.0] * (len(planned) - 2)
    monkeypatch.setattr(battery, "_LEAST_S", 10.0)
    found = measure(minutes=0.1).parts["route"]
    assert found.state.startswith("not begun") and len(found.rows) == len(planned)
    monkeypatch.setattr(battery, "in_process", lambda run: Provenance("Another", "1", "2", "3"))
    assert not measure(minutes=0.1).parts["route"].rows


def test_what_cannot_be_is_refused(monkeypatch, tmp_path):
    out = tmp_path / "gpu.json"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(NoDeviceError, match=r"no GPU here: .*--toy"):
        battery.measure(Sitting(), out)
    assert not out.exists() and NoDeviceError.exit_code == 12
    for minutes in (0, math.nan):
        with pytest.raises(ConfigError, match=f"minutes is {minutes}"):
            Sitting(minutes=minutes)
    with pytest.raises(ConfigError, match="'tea'"):
        Sitting(("tea",))
    with pytest.raises(ConfigError, match="there is no such folder"):
        Sitting(backbone=Path("nowhere"))
    part = {"state": DONE, "seconds": 1.0, "rows": []}
    out.write_text(json.dumps({"toy": False, "parts": {"route": part}}))
    with pytest.raises(ConfigError, match="holds measured numbers, and these would be toy"):
        battery.measure(Sitting(toy=True), out)


def test_a_backbone_is_trained_where_there_is_one(tmp_path):
    assert "backbone" not in Sitting().usual and "route" in Sitting().usual
    assert Sitting(backbone=tmp_path).usual == tuple(PARTS) == Sitting(toy=True).usual


def test_what_a_cpu_leaves_out_is_no_failure_at_toy_size():
    row = Row("flash-attn", "ms", failed=battery._LEFT_OUT)
    for toy in (True, False):
        left_out = Results(toy, {"attention": PartResult(DONE, 1.0, (row,))})
        assert battery.complete(left_out) == toy and battery.failures(left_out)
        broken = left_out.with_part("route", PartResult("RankError: late", 1.0, ()))
        assert not battery.complete(broken)
        broken = left_out.with_part("route", PartResult(DONE, 1.0, (Row("a", "ms", failed="b"),)))
        assert not battery.complete(broken)


@pytest.mark.slow
def test_everything_runs_at_toy_size(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = battery.measure(Sitting(minutes=60, toy=True), tmp_path / "gpu.json")
    states = {name: part.state for name, part in found.parts.items()}
    assert set(states.values()) == {DONE} and states.keys() == PARTS.keys()
    failed = {row.failed for part in found.parts.values() for row in part.rows if row.failed}
    assert failed <= {battery._LEFT_OUT} and battery.complete(found)
