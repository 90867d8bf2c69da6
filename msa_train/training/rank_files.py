"""What one rank writes of a checkpoint: at once, or from copies while it trains on."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline import files
from msa_train.checkpoint_folders import Digests


class RankFiles:
    """Files in `folder`, their SHA-256 taken as they are written.

    beside: what is added is copied to the host, and written by `write`; otherwise it is written at
    once. An error is raised by `write` alone, so that ranks which have to meet in between do.
    """

    def __init__(self, folder: Path, beside: bool):
        self._folder, self._beside = folder, beside
        self._later: list[Callable[[], None]] = []
        self._error: Exception | None = None
        self.digests: Digests = {}

    def add_state(self, state: Any, path: Path) -> None:
        """What torch.save takes."""
        self._add(partial(self._save, on_host(state) if self._beside else state, path))

    def add_weights(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """float32, on the host, and changed by nobody after this: a safetensors file."""
        self._add(partial(self._save_weights, dict(weights), path))

    def wait_for_copies(self) -> None:
        """What was added may change after this."""
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()

    def write(self) -> None:
        """Raises the first error that was met; nothing has been written after that."""
        while self._later:
            self._attempt(self._later.pop(0))  # whose copies are freed one after another
        if self._error is not None:
            raise self._error

    def _add(self, write: Callable[[], None]) -> None:
        if self._beside:
            self._later.append(write)
        else:
            self._attempt(write)

    def _attempt(self, write: Callable[[], None]) -> None:
        if self._error is None:
            try:
                write()
            except Exception as error:
                self._error = error

    def _save(self, state: Any, path: Path) -> None:
        self._new_file(path, partial(torch.save, state))

    def _save_weights(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """As safetensors lays it out. Its own writer wants all bytes at once, once more, and lets
        no other thread run meanwhile."""
        header, end = {}, 0
        for name, weight in weights.items():
            place = [end, end := end + weight.nbytes]
            header[name] = {"dtype": "F32", "shape": list(weight.shape), "data_offsets": place}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)

        def write(file: _QuietFile) -> None:
            file.write(len(text).to_bytes(8, "little") + text)
            for weight in weights.values():
                file.write(weight.contiguous().view(-1).numpy())

        self._new_file(path, write)

    def _new_file(self, path: Path, write: Callable[[_QuietFile], None]) -> None:
        with files.naming(path), files.NewFile(path) as file:
            quiet = _QuietFile(file)
            write(quiet)
            if quiet.error is not None:
                raise quiet.error
        self.digests[str(path.relative_to(self._folder))] = file.bytes, file.sha256


class _QuietFile:
    """Keeps the first error of a file: torch's writer would meet an exception inside C++."""

    def __init__(self, file: files.NewFile):
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return self._file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing is held back."""


def on_host(state: Any) -> Any:
    """A copy that nobody changes, which torch.save writes to the same bytes.

    From a GPU into page-locked memory, behind the work that was given to it before: whoever reads
    the copy waits for that.
    """
    storages: dict[int, Tensor] = {}
    tensors = list(_tensors(state))  # kept, so that no address is another's meanwhile
    known = {id(each): _tensor_on_host(each, storages) for each in tensors}
    return copy.deepcopy(state, known)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


def _tensor_on_host(value: Tensor, storages: dict[int, Tensor]) -> Tensor:
    """storages: copies of whole ones, by their address."""
    storage = value.untyped_storage()
    if storage._cdata not in storages:
        flat = torch.empty(0, dtype=torch.uint8, device=value.device).set_(storage)
        copied = torch.empty(len(flat), dtype=torch.uint8, pin_memory=value.is_cuda)
        storages[storage._cdata] = copied.copy_(flat, non_blocking=True)
    copied = storages[storage._cdata].untyped_storage()
    place = value.storage_offset(), value.size(), value.stride()
    made = torch.empty(0, dtype=value.dtype).set_(copied, *place)
    if isinstance(value, torch.nn.Parameter):
        made = torch.nn.Parameter(made, requires_grad=False)
    made.__dict__.update(value.__dict__)  # which torch.save stores as well
    return made.requires_grad_(value.requires_grad)
