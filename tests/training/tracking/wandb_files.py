"""Reads what W&B wrote: the records of a run-*.wandb file, which is a LevelDB log of protobufs."""

import json
import struct
import time
from pathlib import Path

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK, CHUNK_HEADER = 7, 32768, 7  # bytes; chunks do not cross blocks
WHOLE, LAST = 1, 4


class Segment:
    """One run directory. A resumed run has several, with the same id."""

    def __init__(self, path, wait_s=30):
        found, end = _kinds(path), time.monotonic() + wait_s
        while not {"run", "exit"} <= found.keys() and time.monotonic() < end:
            time.sleep(0.2)  # another process writes it
            found = _kinds(path)
        self.folder, self.records = Path(path).parent, found
        self.run, self.exit_code = found["run"][0], found["exit"][0].exit_code
        self.alerts = found.get("alert", [])
        self.artifacts = {each.name: each for each in found.get("artifact", [])}

    @property
    def config(self):
        return {each.key: json.loads(each.value_json) for each in self.run.config.update}

    @property
    def history(self):
        """Step -> its numbers; of media, the fields after a slash."""
        return {each.step.num: _items(each.item) for each in self.records.get("history", [])}

    @property
    def summary(self):
        found = {}
        for each in self.records["summary"]:
            found |= _items(each.update)
        return found

    def table(self, name, step):
        path = self.history[step][f"{name}/path"]
        return json.loads((self.folder / "files" / path).read_text())


def segments(folder):
    """By the time they began: the folders' names count seconds only."""
    found = [Segment(path) for path in folder.glob("wandb/offline-run-*/run-*.wandb")]
    return sorted(found, key=lambda each: each.run.start_time.ToNanoseconds())


def _items(items):
    return {"/".join(each.nested_key) or each.key: json.loads(each.value_json) for each in items}


def _kinds(path):
    """Records by kind."""
    found = {}
    for record in _records(Path(path).read_bytes()):
        kind = record.WhichOneof("record_type")
        found.setdefault(kind, []).append(getattr(record, kind))
    return found


def _records(data):
    assert data.startswith(b":W&B")
    place, parts = HEADER, b""
    while place + CHUNK_HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < CHUNK_HEADER:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + CHUNK_HEADER])
        place += CHUNK_HEADER
        if place + size > len(data):
            return  # still being written
        parts += data[place : place + size]
        place += size
        if kind in (WHOLE, LAST):
            record, parts = wandb_internal_pb2.Record.FromString(parts), b""
            yield record
