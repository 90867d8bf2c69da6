"""What W&B has on disk: the last step, also of files that end anywhere."""

import struct

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from msa_train.training.tracking.written import last_step

BLOCK, HEADER = 32768, b":W&B\x00\x00\x00"


def record(step, filler=0):
    made = Record()
    made.history.step.num = step
    made.history.item.add(key="loss/lm", value_json="1" * filler)
    return made.SerializeToString()


def log_of(records):
    """A LevelDB log: chunks of checksum (0 here), size and kind, none across a block's end."""
    data = bytearray(HEADER)
    for each in records:
        rest, begun = each, False
        while rest or not begun:
            left = BLOCK - len(data) % BLOCK
            if left < 7:
                data += bytes(left)
                continue
            part, rest = rest[: left - 7], rest[left - 7 :]
            kind = {(False, False): 1, (False, True): 2, (True, True): 3, (True, False): 4}
            data += struct.pack("<IHB", 0, len(part), kind[begun, bool(rest)]) + part
            begun = True
    return bytes(data)


@pytest.fixture
def write(tmp_path):
    def write(name, data, run_id="ab12"):
        folder = tmp_path / "wandb" / f"{name}-20260101_000000-{run_id}"
        folder.mkdir(parents=True)
        (folder / f"run-{run_id}.wandb").write_bytes(data)
        return tmp_path

    return write


def test_a_file_that_was_cut_anywhere_says_what_it_holds(write, tmp_path):
    whole = log_of([record(10), record(20, filler=3 * BLOCK), record(30)])
    folder = write("offline-run", whole)
    path = next(folder.glob("wandb/*/*.wandb"))
    ends = {10: len(log_of([record(10)])), 30: len(whole)}
    assert last_step(folder, "ab12") == 30
    for cut, step in ((ends[10], 10), (ends[10] - 1, -1), (ends[30] - 1, 20), (5000, 10), (3, -1)):
        path.write_bytes(whole[:cut])
        assert last_step(folder, "ab12") == step, cut


def test_parts_of_a_run_are_taken_together_and_others_left_out(write):
    write("offline-run", log_of([record(10)]))
    write("offline-run", log_of([record(90)]), run_id="cd34")
    folder = write("run", log_of([record(40)]))
    assert last_step(folder, "ab12") == 40
    assert last_step(folder, "ab12", offline_only=True) == 10
    assert last_step(folder, "nobody") == -1


@pytest.mark.parametrize("data", [b"", b"no log", HEADER + b"\x00\x00\x00\x00\x03\x00\x01xyz"])
def test_a_file_that_is_none_says_nothing(write, data):
    assert last_step(write("offline-run", data), "ab12") == -1
