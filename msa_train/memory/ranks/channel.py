"""Messages between the driver and a worker: a JSON object and small tensors, never pickle."""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

_FRAME = struct.Struct("<IQ")  # bytes of the JSON text, bytes of all tensors after it
_LARGEST = 1 << 34  # a longer frame is no message of ours
_DTYPES = {"int64": torch.int64, "uint8": torch.uint8, "float32": torch.float32}


class Closed(Exception):
    """The process at the other end is gone."""


class Late(Exception):
    """The deadline passed."""


class Packet(NamedTuple):
    head: dict[str, Any]
    tensors: dict[str, Tensor]


class Channel:
    """One end of a socket pair. Deadlines are times of time.monotonic(); None waits for ever."""

    def __init__(self, end: socket.socket):
        self._end = end
        end.setblocking(False)

    def fileno(self) -> int:
        return self._end.fileno()

    def close(self) -> None:
        self._end.close()

    def send(
        self, head: dict[str, Any], tensors: Mapping[str, Tensor], deadline: float | None
    ) -> None:
        """tensors: on the CPU, of a dtype in _DTYPES. Raises Closed or Late."""
        forms = {name: [str(x.dtype)[6:], list(x.shape)] for name, x in tensors.items()}
        text = json.dumps({**head, "tensors": forms}).encode()
        raw = [x.contiguous().flatten().view(torch.uint8).numpy().data for x in tensors.values()]
        frame = _FRAME.pack(len(text), sum(part.nbytes for part in raw))
        for data in (frame + text, *raw):
            self._write(memoryview(data).cast("B"), deadline)

    def receive(self, deadline: float | None) -> Packet:
        """The next whole message. Raises Closed or Late."""
        length, size = _FRAME.unpack(self._read(_FRAME.size, deadline))
        assert length + size < _LARGEST, "the channel lost its place"
        head = json.loads(self._read(length, deadline).decode())
        data = self._read(size, deadline)
        tensors, start = {}, 0
        for name, (kind, shape) in head.pop("tensors").items():
            count = torch.Size(shape).numel()
            dtype = _DTYPES[kind]
            tensor = torch.empty(0, dtype=dtype)
            if count:
                tensor = torch.frombuffer(data, dtype=dtype, count=count, offset=start)
            tensors[name] = tensor.view(shape)
            start += count * dtype.itemsize
        return Packet(head, tensors)

    def _write(self, data: memoryview, deadline: float | None) -> None:
        while data:
            try:
                data = data[self._end.send(data) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)
            except (BrokenPipeError, ConnectionResetError):
                raise Closed from None

    def _read(self, size: int, deadline: float | None) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            try:
                count = self._end.recv_into(rest)
            except BlockingIOError:
                self._wait(select.POLLIN, deadline)
                continue
            except ConnectionResetError:
                raise Closed from None
            if count == 0:
                raise Closed
            rest = rest[count:]
        return data

    def _wait(self, event: int, deadline: float | None) -> None:
        poll = select.poll()
        poll.register(self._end, event)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not poll.poll(left):
            raise Late
