"""Keys and values of contexts while they are decoded, in buffers that are written in place.

One buffer per layer [rows, E + T, G, D]. A row is a context: the chunks it attends to end at column
E, its own tokens begin there. So both are consecutive columns, and a decode step attends to a
window of the buffer without copying it. A mask hides what a row does not use, and carries the
gate's bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from msa_kernels.ragged import cumulative, segment_ids
from torch import Tensor

from msa_train.model.attention import SelectedChunks
from msa_train.model.batch import positions_within
from msa_train.model.config import ModelConfig

Window = tuple[int, int]  # columns before and after E that some row uses
_CHUNKS = 64  # chunks a row has room for at first
_CUDA_STEP = 64  # smallest window of a captured step


@dataclass(frozen=True)
class Prefill:
    """What a prefill of m contexts leaves, packed by ctx_cu [m+1].

    hidden [Na, d] after the last norm; keys, values per layer [Na, G, D]; selected per router
    layer, of which some may only vote; next_positions [m] of the token that follows each context.
    """

    hidden: Tensor
    ctx_cu: Tensor
    next_positions: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    selected: dict[int, SelectedChunks]

    @property
    def read(self) -> dict[int, SelectedChunks]:
        """Of the layers whose contexts attend to what they selected."""
        return {layer: each for layer, each in self.selected.items() if each.read}

    @property
    def last(self) -> Tensor:
        """[m, d] what each context's next token follows from."""
        return self.hidden[self.ctx_cu[1:] - 1]


class KVCache:
    """Room for `rows` contexts of at most `limit` own tokens each.

    tokens: own tokens there is room for at first (default: limit, so that memory never grows with
    them). Room for chunks doubles when a context attends to more. like: a tensor of the model's
    dtype and device. version: counts how often the buffers were replaced by larger ones.
    """

    def __init__(
        self, config: ModelConfig, rows: int, limit: int, like: Tensor, tokens: int | None = None
    ):
        self.rows, self.limit = rows, limit
        self.version = 0
        self.entries, self.tokens = _CHUNKS, min(limit, tokens or limit)
        self.lengths, self.chunks = [0] * rows, [0] * rows  # used by each row
        self.length, self.position, self.active = (
            torch.zeros(rows, dtype=torch.int64, device=like.device) for _ in range(3)
        )
        self._reads = [layer in config.reading_layers for layer in range(config.layers)]
        self._kv_heads, self._scale = config.kv_heads, config.head_dim**-0.5
        heads = config.kv_heads, config.head_dim
        self.keys, self.values = (
            [_zeros((rows, self._lead(n) + self.tokens, *heads), like) for n in range(len(self))]
            for _ in range(2)
        )
        self._own = like.new_full((rows, self.tokens), -torch.inf)
        # Plain layers share one mask: [rows, T]; a reading layer has its own [rows, E + T].
        self.masks = [
            like.new_full((rows, self.entries + self.tokens), -torch.inf) if reads else self._own
            for reads in self._reads
        ]

    def __len__(self) -> int:
        """Layers."""
        return len(self._reads)

    def room(self, row: int) -> int:
        """Tokens that a row can still take."""
        return self.limit - self.lengths[row]

    def admit(self, prefill: Prefill, contexts: Sequence[int], rows: Sequence[int]) -> None:
        """Puts contexts of a prefill into rows."""
        held = [prefill.ctx_cu.diff().tolist()]
        held += [each.routing.index_cu.diff().tolist() for each in prefill.read.values()]
        own, *chunks = ([each[context] for context in contexts] for each in held)
        most = [max(counts) for counts in zip(*chunks, strict=True)] or [0] * len(own)
        self._reserve(max(most), max(own))
        for row, length, count in zip(rows, own, most, strict=True):
            self.lengths[row], self.chunks[row] = length, count
        device = self.length.device
        chosen, places = (torch.tensor(each, device=device) for each in (contexts, rows))
        lengths = prefill.ctx_cu.diff()
        self.length[places], self.position[places] = (
            lengths[chosen], prefill.next_positions[chosen],
        )  # fmt: skip
        target = torch.full_like(lengths, -1)
        target[chosen] = places
        for mask in (self._own, *(self.masks[layer] for layer in prefill.read)):
            mask[places] = -torch.inf
        row = target.repeat_interleave(lengths)
        kept = (row >= 0).nonzero().squeeze(1)
        own = row[kept], positions_within(prefill.ctx_cu)[kept]
        self.unmask(*own)
        for layer, (k, v) in enumerate(zip(prefill.keys, prefill.values, strict=True)):
            self.write(layer, *own, k[kept], v[kept])
        for layer, selected in prefill.read.items():
            self._put_chunks(layer, selected, target)

    def unmask(self, row: Tensor, place: Tensor) -> None:
        """Own tokens at row, place [N] may be attended to from now on."""
        nothing = self._own.new_zeros(())
        self._own.index_put_((row, place), nothing)
        for layer, reads in enumerate(self._reads):
            if reads:
                self.masks[layer].index_put_((row, place + self.entries), nothing)

    def write(self, layer: int, row: Tensor, place: Tensor, k: Tensor, v: Tensor) -> None:
        """Keys and values [N, G, D] of own tokens at row, place [N]."""
        column = place + self._lead(layer)
        self.keys[layer].index_put_((row, column), k)
        self.values[layer].index_put_((row, column), v)

    def begin_step(self, active: Sequence[bool]) -> Window:
        """Before a step that adds one token to those of the first rows that are active.

        Returns the window of columns to attend to; on a GPU in few sizes, as a graph is captured
        for each.
        """
        count = len(active)
        self.active.zero_()
        self.active[:count] = torch.tensor(active, dtype=torch.int64).to(self.active.device)
        chunks, own = max(self.chunks[:count]), max(self.lengths[:count]) + 1
        self._reserve(chunks, own)
        for row, adds in enumerate(active):
            self.lengths[row] += adds
        if self.length.is_cuda:
            chunks = min(self.entries, _doubled(_CUDA_STEP, chunks)) if chunks else 0
            own = min(self.tokens, _doubled(_CUDA_STEP, own))
        return chunks, own

    def end_step(self, count: int) -> None:
        """After the step: the tokens of active rows stay."""
        self.length[:count] += self.active[:count]
        self.position[:count] += self.active[:count]

    def attend(self, layer: int, q: Tensor, window: Window) -> Tensor:
        """One token q [b, H, D] of each of the first rows attends to chunks and own tokens."""
        columns = self._columns(layer, window)
        k, v = (
            x[: len(q), columns].transpose(1, 2) for x in (self.keys[layer], self.values[layer])
        )
        mask = self.masks[layer][: len(q), None, None, columns]
        # The heads of a group are the rows of one product: no key is repeated for them.
        grouped = q.unflatten(1, (self._kv_heads, -1))
        out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=self._scale)
        return out.flatten(1, 2)

    def begin_several(
        self, rows: Sequence[int], counts: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Room for several more tokens of each of `rows`: row, place and position of each [T]."""
        self._reserve(0, max(self.lengths[row] + n for row, n in zip(rows, counts, strict=True)))
        for row, count in zip(rows, counts, strict=True):
            self.lengths[row] += count
        chosen, more = (torch.tensor(each, device=self.length.device) for each in (rows, counts))
        offset = positions_within(cumulative(more))
        of_token = chosen.repeat_interleave(more)
        place, position = self.length[of_token] + offset, self.position[of_token] + offset
        self.length[chosen] += more
        self.position[chosen] += more
        return of_token, place, position

    def attend_several(self, layer: int, q: Tensor, row: int) -> Tensor:
        """The last tokens q [t, H, D] of a row attend to its chunks and, causally, to its own."""
        columns = self._columns(layer, (self.chunks[row], self.lengths[row]))
        k, v = (
            x[row, columns].transpose(0, 1)[None] for x in (self.keys[layer], self.values[layer])
        )
        mask = self.masks[layer][row, columns].repeat(len(q), 1)
        mask[:, -len(q) :].masked_fill_(mask.new_ones(len(q), len(q)).triu(1).bool(), -torch.inf)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], k, v, attn_mask=mask, scale=self._scale, enable_gqa=True
        )
        return out[0].transpose(0, 1)

    def move(self, source: int, target: int) -> None:
        """A context moves to another row; its old one is free."""
        for layer in range(len(self)):
            used = self._columns(layer, (self.chunks[source], self.lengths[source]))
            for kept in (self.keys[layer], self.values[layer]):
                kept[target, used] = kept[source, used]
        for mask in (self._own, *self.masks):
            mask[target] = mask[source]
        for kept in (self.length, self.position):
            kept[target] = kept[source]
        self.lengths[target], self.chunks[target] = self.lengths[source], self.chunks[source]
        self.release(source)

    def reorder(self, sources: Sequence[int]) -> None:
        """Each row takes the context of another: row i that of sources[i] (one for every row)."""
        self.lengths, self.chunks = (
            [kept[i] for i in sources] for kept in (self.lengths, self.chunks)
        )
        chosen = torch.tensor(sources, device=self.length.device)
        for kept in (self.length, self.position):
            kept.copy_(kept[chosen])
        for kept in (
            self._own,
            *(m for m, reads in zip(self.masks, self._reads, strict=True) if reads),
        ):
            kept.copy_(kept[chosen])
        for kept in (*self.keys, *self.values):
            kept.copy_(kept[chosen])

    def release(self, row: int) -> None:
        """A row is free. Its values stay finite, since a step may still attend to them."""
        self.lengths[row] = self.chunks[row] = 0
        self.length[row] = self.position[row] = 0

    def _put_chunks(self, layer: int, selected: SelectedChunks, target: Tensor) -> None:
        routing = selected.routing
        counts, context = routing.index_cu.diff(), segment_ids(routing.index_cu)
        row = target[context]
        kept = (row >= 0).nonzero().squeeze(1)
        column = self.entries - counts[context] + positions_within(routing.index_cu)
        at = row[kept], column[kept]
        for held, states in ((self.keys, selected.k), (self.values, selected.v)):
            held[layer].index_put_(at, states[routing.chunk_index[kept]].to(held[layer].dtype))
        mask = self.masks[layer]
        bias = selected.bias
        bias = mask.new_zeros(()) if bias is None else bias[kept].to(mask.dtype)
        mask.index_put_(at, bias)

    def _reserve(self, entries: int, tokens: int) -> None:
        """Room for chunks doubles to the left of E, room for own tokens to its right."""
        assert tokens <= self.limit, "the scheduler refuses contexts that do not fit"
        left = max(0, _doubled(self.entries, entries) - self.entries)
        right = max(0, min(self.limit, _doubled(self.tokens, tokens)) - self.tokens)
        if not left and not right:
            return
        own = F.pad(self._own, (0, right), value=-torch.inf)
        masks = [
            F.pad(mask, (left, right), value=-torch.inf) if reads else own
            for mask, reads in zip(self.masks, self._reads, strict=True)
        ]
        self._grow(left, right)
        self._own, self.masks = own, masks
        self.entries, self.tokens = self.entries + left, self.tokens + right

    def _grow(self, left: int, right: int) -> None:
        """All buffers or none: where memory runs out, nothing has changed."""
        self.version += 1
        done: list[tuple[list[Tensor], int, slice]] = []
        try:
            for layer, reads in enumerate(self._reads):
                more = left if reads else 0
                for kept in (self.keys, self.values):
                    old = slice(more, more + kept[layer].shape[1])
                    kept[layer] = self._grown(layer, kept[layer], more, right)
                    done.append((kept, layer, old))
        except BaseException:
            for kept, layer, old in done:
                kept[layer] = kept[layer][:, old]
            raise

    def _grown(self, layer: int, kept: Tensor, left: int, right: int) -> Tensor:
        """A larger buffer with what the rows use; pages they do not use are never touched."""
        grown = _zeros((kept.shape[0], left + kept.shape[1] + right, *kept.shape[2:]), kept)
        for row, used in enumerate(zip(self.chunks, self.lengths, strict=True)):
            columns = self._columns(layer, used)
            grown[row, left + columns.start : left + columns.stop] = kept[row, columns]
        return grown

    def _lead(self, layer: int) -> int:
        """Columns before the own tokens."""
        return self.entries if self._reads[layer] else 0

    def _columns(self, layer: int, window: Window) -> slice:
        lead = self._lead(layer)
        return slice(lead - window[0] if lead else 0, lead + window[1])


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros; on a CPU the system gives their memory when it is written to."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    size = math.prod(shape) * like.element_size()
    return torch.from_numpy(np.zeros(size, np.uint8)).view(like.dtype).view(shape)


def _doubled(size: int, needed: int) -> int:
    """size, doubled until it holds what is needed."""
    while size < needed:
        size *= 2
    return size
