"""What W&B has on disk of a run: a run-ID.wandb file is a LevelDB log of its records.

The file of a process that was killed ends anywhere; what stands before its end is whole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_MAGIC, _HEADER, _BLOCK = b":W&B", 7, 32768  # bytes; the log's blocks are not crossed by its chunks
_CHUNK = struct.Struct("<IHB")  # checksum, bytes, kind
_WHOLE, _LAST = 1, 4


def last_step(folder: Path, run_id: str, offline_only: bool = False) -> int:
    """The last step that the parts of a run hold in `folder`/wandb; -1 without any.

    offline_only: parts that were started offline, which `wandb sync` will send.
    """
    parts = "offline-run" if offline_only else "*run"
    files = (folder / "wandb").glob(f"{parts}-*-{run_id}/run-{run_id}.wandb")
    return max((step for path in files for step in _steps(path)), default=-1)


def _steps(path: Path) -> Iterator[int]:
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    try:
        for data in _records(path.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                yield record.history.step.num
    except (OSError, DecodeError):  # unreadable from here on
        return


def _records(data: bytes) -> Iterator[bytes]:
    if not data.startswith(_MAGIC):
        return
    place, parts = _HEADER, b""
    while place + _CHUNK.size <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _CHUNK.size:  # too short for a chunk: filled up
            place += left
            continue
        _, size, kind = _CHUNK.unpack_from(data, place)
        place += _CHUNK.size
        if place + size > len(data):
            return
        parts += data[place : place + size]
        place += size
        if kind in (_WHOLE, _LAST):
            yield parts
            parts = b""
