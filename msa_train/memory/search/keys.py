"""Router keys of consecutive documents in one layer, in the form in which they are searched.

A search in rounded keys is rough. `error` and `norm` bound how far off its scores can be, which
certified.py needs to make the result exact.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from msa_kernels import PreparedKeys, QuantisedKeys, quantise, quantised_document_scores
from msa_kernels.quantised import FORMATS
from torch import Tensor

from msa_train.errors import ConfigError
from msa_train.memory.search.key_table import BLOCK, FLOATS, PlacedKeys, SearchedKeys
from msa_train.memory.search.settings import KeyForm
from msa_train.model.config import RouterConfig

_SUMS = 128  # roundings in a float32 sum, beyond one per product


class LayerKeys:
    """Keys of n documents; `full` [C, V] are those of the bank, on whatever device.

    chunk_cu [n+1], on the CPU. form: "stored" searches `full` itself; the others are copies on
    `device`. placed: where they lie already in that form, among others (None: they are made here).
    in_table: they are for device_search.py. error: no score in them is off by more than this times
    |query|, beside what float32 sums lose: how far a rounded key may be from the full one, as a
    length, and what a search itself rounds; one number for all or [n], the largest of each
    document. norm: no key is longer. whole: they are the full ones, if in another dtype. Raises
    ConfigError for a form that rounds keys, where the router's scoring has no bound for that.
    """

    def __init__(
        self,
        full: Tensor,
        chunk_cu: Tensor,
        router: RouterConfig,
        heads: int,
        form: KeyForm = "stored",
        device: torch.device | str = "cpu",
        placed: PlacedKeys | None = None,
    ):
        narrower = form in FLOATS and _eps(FLOATS[form]) > _eps(full.dtype)
        self.whole = not narrower and form not in FORMATS
        if not router.scoring.certifiable and not self.whole:
            raise ConfigError(
                f"keys are {form}, but this router's score is no single dot product: use stored"
            )
        self.full, self.chunk_cu, self._scoring = full, chunk_cu, router.scoring
        self.device = torch.device(device)
        longest = router.scoring.longest_key(heads)
        # A little more, because the stored keys were rounded.
        self.norm = 1.001 * (_longest(full) if longest is None else longest)
        # To the nearest: no value moves by more than half of what separates neighbours.
        self._rounded = 0.501 * self.norm * _eps(FLOATS[form]) if narrower else 0.0
        self.in_table = placed is not None or self.device.type != "cpu"
        if placed is None:
            searched = _searched(full, heads, form, device)
            placed = PlacedKeys(lambda: searched)
        self.placed = placed
        self.prepared: PreparedKeys | None = None
        if not self.in_table and router.scoring.certifiable:
            self.prepared = PreparedKeys(self._searched, self._cu, self.norm)
            self._rounded += self.norm * self.prepared.rounding

    @property
    def documents(self) -> int:
        return len(self.chunk_cu) - 1

    @cached_property
    def longest_document(self) -> int:
        """In chunks."""
        return int(self.chunk_cu.diff().max())

    @cached_property
    def error(self) -> Tensor | float:
        searched = self._searched
        if not isinstance(searched, QuantisedKeys):
            return self._rounded
        return largest_of(searched.error, self._cu) + self._rounded

    def scores(self, query: Tensor, query_cu: Tensor) -> Tensor:
        """[m, n] by the keys as they are searched, on their device."""
        query, query_cu = query.to(self.device), query_cu.to(self.device)
        searched = self._searched
        if isinstance(searched, QuantisedKeys):
            return quantised_document_scores(query, query_cu, searched, self._cu)
        bank = query_cu.new_zeros(len(query_cu) - 1), query_cu.new_tensor([0, self.documents])
        return self._scoring.document_scores(query, query_cu, searched, self._cu, *bank)

    @property
    def searched_bytes(self) -> int:
        if isinstance(self._searched, QuantisedKeys):
            return sum(part.nbytes for part in vars(self._searched).values())
        return self._searched.nbytes

    @cached_property
    def _cu(self) -> Tensor:
        return self.chunk_cu.to(self.device)

    @property
    def _searched(self) -> SearchedKeys:
        return self.placed.own(len(self.full))


def lost_in_sums(width: int, norm: float) -> float:
    """How far a float32 sum of `width` products may be off, per length of the query. norm: no key
    is longer."""
    return (width + _SUMS) * 2.0**-23 * norm


def largest_of(errors: Tensor, chunk_cu: Tensor) -> Tensor:
    """[n] the largest error of each document's chunks; errors [C]."""
    counts = chunk_cu.diff()
    document = torch.arange(len(counts), device=errors.device)
    document = document.repeat_interleave(counts, output_size=len(errors))
    worst = errors.new_zeros(len(counts))
    return worst.scatter_reduce_(0, document, errors, "amax")


def chunks_of(documents: Tensor, chunk_cu: Tensor) -> Tensor:
    """Numbers of all chunks of some documents, document by document."""
    rows, cu = documents.numpy(), chunk_cu.numpy()
    starts = cu[rows]
    counts = cu[rows + 1] - starts
    ends = counts.cumsum()
    place = np.arange(ends[-1] if len(ends) else 0)
    return torch.from_numpy(place + np.repeat(starts - ends + counts, counts))


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _searched(full: Tensor, heads: int, form: KeyForm, device: torch.device | str) -> SearchedKeys:
    """Keys in the form in which they are searched, on `device`."""
    if form == "stored":
        return full.to(device)
    if form in FLOATS:
        return _converted(full, FLOATS[form], device)
    return _quantised(full, heads, form, device)


def _longest(full: Tensor) -> float:
    """Length of the longest key; block by block, as in _converted."""
    starts = range(0, len(full), BLOCK)
    return max((float(full[s : s + BLOCK].float().norm(dim=1).amax()) for s in starts), default=0.0)


def _converted(full: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A copy, block by block: the source may be a mapped file larger than the free memory."""
    if full.dtype == dtype and torch.device(device).type != "cpu":
        return full.to(device)
    out = torch.empty(full.shape, dtype=dtype, device=device)
    for start in range(0, len(full), BLOCK):
        out[start : start + BLOCK] = full[start : start + BLOCK].to(device)
    return out


def _quantised(full: Tensor, heads: int, form: str, device: torch.device | str) -> QuantisedKeys:
    blocks = [
        quantise(full[start : start + BLOCK].to(device), heads, form)
        for start in range(0, max(1, len(full)), BLOCK)
    ]
    return QuantisedKeys(
        *(torch.cat([vars(block)[name] for block in blocks]) for name in vars(blocks[0]))
    )
