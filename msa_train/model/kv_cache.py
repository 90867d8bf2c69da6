"""Keys and values of contexts while they are decoded, in buffers that are written in place.

One buffer per layer [rows, E + T, G, D]. A row is a context: the chunks it attends to end at column
E, its own tokens begin there. So both are consecutive columns, and a decode step attends to a
window of the buffer without copying it. A mask hides what a row does not use, and carries the
gate's bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from msa_train.model.attention import SelectedChunks
from msa_train.model.config import ModelConfig
from msa_train.model.transfer import pinned, uploaded

Window = tuple[int, int]  # columns before and after E that some row uses
_CHUNKS = 64  # chunks a row has room for at first
_STEP = 64  # smallest window of a captured step


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

    def counts(self) -> list[list[int]]:
        """Own tokens of each context, then the chunks that it reads in each layer of `read`."""
        cus = [self.ctx_cu, *(each.routing.index_cu for each in self.read.values())]
        return torch.stack(cus).diff(dim=1).tolist()  # one wait for the device


def room_for(chunks: int) -> int:
    """Columns that a row of the cache has for chunks when a context reads so many."""
    return _doubled(_CHUNKS, chunks)


def cache_bytes(
    config: ModelConfig, rows: int, tokens: int, chunks: int, size: int
) -> dict[str, int]:
    """Bytes of a KVCache of `rows`, with room for own tokens and for chunks, in numbers of `size`
    bytes: of keys and values of own tokens, of those of chunks, and of the masks."""
    reading, columns = len(config.reading_layers), room_for(chunks)
    token = 2 * config.kv_heads * config.head_dim * size
    return {
        "tokens": rows * tokens * config.layers * token,
        "chunks": rows * columns * reading * token,
        "masks": rows * (tokens + reading * (columns + tokens)) * size,
    }


class KVCache:
    """Room for `rows` contexts of at most `limit` own tokens each.

    tokens: own tokens there is room for at first (default: limit, so that memory never grows with
    them). chunks: of a context, there is room for at first; it doubles when a context attends to
    more. like: a tensor of the model's dtype and device. version: counts how often the buffers were
    replaced by larger ones.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        limit: int,
        like: Tensor,
        tokens: int | None = None,
        chunks: int = 0,
    ):
        self.rows, self.limit = rows, limit
        self.version = 0
        self.entries, self.tokens = room_for(chunks), min(limit, tokens or limit)
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
        # Plain layers share one mask: [rows, T]; a reading layer has its own of [.., rows, E + T].
        self._own = like.new_full((rows, self.tokens), -torch.inf)
        shape = sum(self._reads), rows, self.entries + self.tokens
        self._reading = like.new_full(shape, -torch.inf)
        self.masks = self._masks()

    def __len__(self) -> int:
        """Layers."""
        return len(self._reads)

    @property
    def nbytes(self) -> int:
        """Bytes that the buffers take."""
        return sum(x.nbytes for x in (*self.keys, *self.values, self._own, self._reading))

    def room(self, row: int) -> int:
        """Tokens that a row can still take."""
        return self.limit - self.lengths[row]

    def windows(self) -> list[Window]:
        """What begin_step returns on a GPU for contexts that read something, the largest first."""
        chunks = _steps(self.entries) if any(self._reads) else [0]
        return [(most, own) for most in chunks for own in _steps(self.tokens)]

    def admit(self, prefill: Prefill, contexts: Sequence[int], rows: Sequence[int]) -> None:
        """Puts contexts of a prefill into rows. The host waits once, for how long each is."""
        own, *chunks = prefill.counts()
        most = [max(counts) for counts in zip(*chunks, strict=True)] or [0] * len(own)
        self._reserve(max(most[c] for c in contexts), max(own[c] for c in contexts))
        for row, context in zip(rows, contexts, strict=True):
            self.lengths[row], self.chunks[row] = own[context], most[context]
        target = dict(zip(contexts, rows, strict=True))
        packed = [_packed(own, target), *(_packed(each, target, backwards=True) for each in chunks)]
        lengths = [own[context] for context in contexts]
        chosen, places, length, *parts = uploaded(
            [contexts, rows, lengths, *(x for each in packed for x in each)], self.length.device
        )
        self.length[places], self.position[places] = length, prefill.next_positions[chosen]
        self._own.index_fill_(0, places, -torch.inf)
        self._reading.index_fill_(1, places, -torch.inf)
        source, row, place = parts[:3]
        self.unmask(row, place)
        everything = len(packed[0][0]) == len(prefill.hidden)
        for layer, (k, v) in enumerate(zip(prefill.keys, prefill.values, strict=True)):
            self.write(layer, row, place, *((k, v) if everything else (k[source], v[source])))
        for number, (layer, selected) in enumerate(prefill.read.items(), 1):
            self._put_chunks(layer, selected, *parts[3 * number : 3 * number + 3])

    def unmask(self, row: Tensor, place: Tensor) -> None:
        """Own tokens at row, place [N] may be attended to from now on."""
        nothing = self._own.new_zeros(())
        self._own.index_put_((row, place), nothing)
        if len(self._reading):
            self._reading[:, row, place + self.entries] = nothing

    def write(self, layer: int, row: Tensor, place: Tensor, k: Tensor, v: Tensor) -> None:
        """Keys and values [N, G, D] of own tokens at row, place [N]."""
        lead = self._lead(layer)
        column = place + lead if lead else place
        self.keys[layer].index_put_((row, column), k)
        self.values[layer].index_put_((row, column), v)

    def begin_step(self, active: Sequence[bool]) -> Window:
        """Before a step that adds one token to those of the first rows that are active.

        Returns the window of columns to attend to; on a GPU in few sizes, as a graph is captured
        for each.
        """
        count = len(active)
        flags = torch.tensor([*active, *[False] * (self.rows - count)], dtype=torch.int64)
        self.active.copy_(pinned(flags, self.active.device), non_blocking=True)
        chunks, own = max(self.chunks[:count]), max(self.lengths[:count]) + 1
        self._reserve(chunks, own)
        for row, adds in enumerate(active):
            self.lengths[row] += adds
        if self.length.is_cuda:
            chunks = min(self.entries, _doubled(_STEP, chunks)) if chunks else 0
            own = min(self.tokens, _doubled(_STEP, own))
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
        offsets = np.concatenate([np.arange(count) for count in counts])
        starts = np.repeat([self.lengths[row] for row in rows], counts)
        of_token, place, offset, chosen, more = uploaded(
            [np.repeat(rows, counts), starts + offsets, offsets, rows, counts], self.length.device
        )
        for row, count in zip(rows, counts, strict=True):
            self.lengths[row] += count
        position = self.position[of_token] + offset
        self.length.index_add_(0, chosen, more)
        self.position.index_add_(0, chosen, more)
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
        self._own[target] = self._own[source]
        self._reading[:, target] = self._reading[:, source]
        for kept in (self.length, self.position):
            kept[target] = kept[source]
        self.lengths[target], self.chunks[target] = self.lengths[source], self.chunks[source]
        self.release(source)

    def reorder(self, sources: Sequence[int]) -> None:
        """Each row takes the context of another: row i that of sources[i] (one for every row)."""
        self.lengths, self.chunks = (
            [kept[i] for i in sources] for kept in (self.lengths, self.chunks)
        )
        [chosen] = uploaded([sources], self.length.device)
        for kept in (self.length, self.position, self._own, *self.keys, *self.values):
            kept.copy_(kept[chosen])
        self._reading.copy_(self._reading[:, chosen])

    def release(self, row: int) -> None:
        """A row is free. Its values stay finite, since a step may still attend to them."""
        self.lengths[row] = self.chunks[row] = 0
        self.length[row].zero_()
        self.position[row].zero_()

    def _masks(self) -> list[Tensor]:
        """Of each layer: what its steps add to the attention logits of a row's columns."""
        reading = iter(self._reading)
        return [next(reading) if reads else self._own for reads in self._reads]

    def _put_chunks(
        self, layer: int, selected: SelectedChunks, source: Tensor, row: Tensor, left: Tensor
    ) -> None:
        """Entries `source` [n] of a routing into rows; left: how many of a row begin there."""
        at, index = (row, self.entries - left), selected.routing.chunk_index[source]
        for held, states in ((self.keys, selected.k), (self.values, selected.v)):
            held[layer].index_put_(at, states[index].to(held[layer].dtype))
        mask, bias = self.masks[layer], selected.bias
        bias = mask.new_zeros(()) if bias is None else bias[source].to(mask.dtype)
        mask.index_put_(at, bias)

    def _reserve(self, entries: int, tokens: int) -> None:
        """Room for chunks doubles to the left of E, room for own tokens to its right."""
        assert tokens <= self.limit, "the scheduler refuses contexts that do not fit"
        left = max(0, _doubled(self.entries, entries) - self.entries)
        right = max(0, min(self.limit, _doubled(self.tokens, tokens)) - self.tokens)
        if not left and not right:
            return
        own = F.pad(self._own, (0, right), value=-torch.inf)
        reading = F.pad(self._reading, (left, right), value=-torch.inf)
        self._grow(left, right)
        self._own, self._reading = own, reading
        self.masks = self._masks()
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


def _packed(
    counts: Sequence[int], target: Mapping[int, int], backwards: bool = False
) -> tuple[np.ndarray, ...]:
    """Of the packed rows of those sequences that have a target: their numbers, the target of each,
    and its place within its sequence (backwards: how many are left there), [n] each."""
    ends, chosen = np.cumsum(counts), sorted(target)
    lengths = [counts[each] for each in chosen]
    places = [np.arange(length) for length in lengths]
    starts = [ends[each] - counts[each] for each in chosen]
    sources = [start + place for start, place in zip(starts, places, strict=True)]
    rows = np.repeat([target[each] for each in chosen], lengths)
    if backwards:
        places = [np.arange(length, 0, -1) for length in lengths]
    return np.concatenate(sources), rows, np.concatenate(places)


def _steps(most: int) -> list[int]:
    """Sizes of a window that holds at most so many columns, the largest first."""
    sizes = {min(most, _STEP << doubling) for doubling in range(most.bit_length())}
    return sorted(sizes, reverse=True)


def _doubled(size: int, needed: int) -> int:
    """size, doubled until it holds what is needed."""
    while size < needed:
        size *= 2
    return size
