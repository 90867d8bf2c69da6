"""What is told of saving is what the rows of a run say."""

import pytest

from msa_train.bench import checkpoint


def row(step_ms, stall=0.0, sealed=0.0):
    return {"step_ms": step_ms, "checkpoint_stall_s": stall, "checkpoint_s": sealed}


def test_steps_while_a_checkpoint_is_written_stand_apart():
    beside = [row(900), row(100), row(150, stall=0.5), row(170), row(110, sealed=4.0), row(90)]
    found = checkpoint._saving("async", beside, 200.0, {"mb_per_s": 400.0})
    assert found == {
        "mode": "async", "checkpoints": 1, "stall_s": 0.5, "sealed_s": 4.0, "mb_per_s": 50.0,
        "floor_mb_per_s": 400.0, "step_ms": 100, "step_ms_while_writing": 160,
    }  # fmt: skip
    waits = [row(900), row(100), row(100, stall=2.0, sealed=2.0), row(120)]
    found = checkpoint._saving("plain", waits, 200.0, {"mb_per_s": 400.0})
    assert found["step_ms_while_writing"] is None and found["stall_s"] == found["sealed_s"] == 2.0


@pytest.mark.slow
def test_saving_and_a_restart_are_measured(tmp_path):
    found = checkpoint.measure("toy", folder=tmp_path)
    plain, beside = found["saving"]
    assert plain["mode"] == "plain" and beside["mode"] == "async"
    assert plain["checkpoints"] == beside["checkpoints"] == 2
    parts = {"launcher_s", "imports_s", "ranks_meet_s", "model_s", "checkpoint_checked_s",
             "checkpoint_read_s", "first_batch_s", "first_step_s"}  # fmt: skip
    assert parts < set(found["restart"])
    assert found["restart"]["first_step_after_s"] < found["restart"]["whole_run_s"]
    assert not list(tmp_path.iterdir())
