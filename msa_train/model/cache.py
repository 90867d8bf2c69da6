"""What a context keeps between prefill and decoding: its own keys and values, and what it reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from msa_train.model.attention import Reading
from msa_train.model.batch import positions_within
from msa_train.model.router import Routing


@dataclass
class Cache:
    """Keys and values of the contexts' own tokens per layer, padded, and what each layer reads."""

    lengths: Tensor  # [m]
    next_positions: Tensor  # [m]
    keys: list[Tensor]  # per layer [m, Tmax, G, D]
    values: list[Tensor]
    memory: dict[int, Reading]

    def advance(self, q_cu: Tensor) -> Step:
        """Makes room for q_cu.diff() more tokens of each context."""
        counts = q_cu.diff()
        context = torch.arange(len(counts), device=q_cu.device).repeat_interleave(counts)
        offset = positions_within(q_cu)
        places, positions = self.lengths[context] + offset, self.next_positions[context] + offset
        self.lengths += counts
        self.next_positions += counts
        self._reserve(int(self.lengths.max()))
        # A context that feeds nothing now attends to nothing: its keys are not gathered either.
        seen = self.lengths * (counts > 0)
        real = torch.arange(self.keys[0].shape[1], device=q_cu.device) < seen[:, None]
        rows = real.flatten().nonzero().squeeze(1)
        return Step(context, places, positions, rows, F.pad(seen.cumsum(0), (1, 0)))

    def _reserve(self, longest: int) -> None:
        held = self.keys[0].shape[1]
        if longest > held:
            more = (0, 0, 0, 0, 0, max(longest, held + held // 2) - held)
            self.keys = [F.pad(kept, more) for kept in self.keys]
            self.values = [F.pad(kept, more) for kept in self.values]


@dataclass(frozen=True)
class Step:
    """Where newly fed tokens [T] lie, and which of the cache their contexts see."""

    context: Tensor  # [T]
    places: Tensor  # [T] in the cache
    positions: Tensor  # [T] RoPE
    seen: Tensor  # [k_cu[-1]] rows of the flattened cache, packed
    k_cu: Tensor  # [m+1]

    def write(self, kept: Tensor, new: Tensor) -> Tensor:
        """Puts `new` [T, G, D] into the cache [m, Tmax, G, D]; returns all that is seen, packed."""
        kept[self.context, self.places] = new
        return kept.flatten(0, 1).index_select(0, self.seen)


def padded(packed: Tensor, lengths: Tensor, room: int) -> Tensor:
    """Packed [Na, ...] -> [m, longest + room, ...] with zeros where nothing is yet."""
    longest = int(lengths.max()) + room
    out = packed.new_zeros(len(lengths), longest, *packed.shape[1:])
    out[torch.arange(longest, device=lengths.device) < lengths[:, None]] = packed
    return out


def no_memory(k: Tensor, contexts: int) -> Reading:
    """A layer without router reads no chunk."""
    nothing = torch.zeros(0, dtype=torch.int64, device=k.device)
    cu = nothing.new_zeros(contexts + 1)
    none = nothing.new_zeros(contexts, 0)
    routing = Routing(none, cu, none, none, nothing, cu, None)
    return Reading(routing, k[:0], k[:0], None)
