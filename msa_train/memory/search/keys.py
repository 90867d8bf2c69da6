"""Router keys of consecutive documents in one layer, in the form in which they are searched.

A search in rounded keys is rough. `error` and `norm` bound how far off its scores can be, which
certified.py needs to make the result exact.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from msa_kernels import PreparedKeys, QuantisedKeys, quantise, quantised_document_scores
from torch import Tensor

from msa_train.errors import ConfigError
from msa_train.memory.search.settings import KeyForm
from msa_train.model.config import RouterConfig

_FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_BLOCK = 1 << 16  # chunks that are converted at once


class LayerKeys:
    """Keys of n documents; `full` [C, V] are those of the bank, on whatever device.

    chunk_cu [n+1], on the CPU. form: "stored" searches `full` itself; the others are copies on
    `device`. error: no score in them is off by more than this times |query|, beside what float32
    sums lose: how far a rounded key may be from the full one, as a length, and what a search itself
    rounds; one number for all or [n], the largest of each document. norm: no key is longer. Raises
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
    ):
        narrower = form in _FLOATS and _eps(_FLOATS[form]) > _eps(full.dtype)
        if not router.scoring.certifiable and (narrower or form in ("int8", "fp8")):
            raise ConfigError(
                f"keys are {form}, but this router's score is no single dot product: use stored"
            )
        self.full, self.chunk_cu, self._scoring = full, chunk_cu, router.scoring
        self._cu = chunk_cu.to(device)
        self.error: Tensor | float = 0.0
        longest = router.scoring.longest_key(heads)
        # A little more, because the stored keys were rounded.
        self.norm = 1.001 * (_longest(full) if longest is None else longest)
        self._searched: Tensor | QuantisedKeys
        if form == "stored":
            self._searched = full.to(device)
        elif form in _FLOATS:
            self._searched = _converted(full, _FLOATS[form], device)
            # To the nearest: no value moves by more than half of what separates neighbours.
            self.error = 0.501 * self.norm * _eps(_FLOATS[form]) if narrower else 0.0
        else:
            self._searched = _quantised(full, heads, form, device)
            worst = self._searched.error.new_zeros(self.documents)
            document = torch.arange(len(worst), device=device).repeat_interleave(self._cu.diff())
            self.error = worst.scatter_reduce_(0, document, self._searched.error, "amax")
        on_cpu = torch.device(device).type == "cpu" and router.scoring.certifiable
        self.prepared = PreparedKeys(self._searched, self._cu) if on_cpu else None
        if self.prepared is not None:
            self.error = self.error + self.norm * self.prepared.rounding

    @property
    def documents(self) -> int:
        return len(self.chunk_cu) - 1

    @cached_property
    def longest_document(self) -> int:
        """In chunks."""
        return int(self.chunk_cu.diff().max())

    def scores(self, query: Tensor, query_cu: Tensor) -> Tensor:
        """[m, n] by the keys as they are searched, on their device."""
        query, query_cu = query.to(self._cu.device), query_cu.to(self._cu.device)
        if isinstance(self._searched, QuantisedKeys):
            return quantised_document_scores(query, query_cu, self._searched, self._cu)
        bank = query_cu.new_zeros(len(query_cu) - 1), query_cu.new_tensor([0, self.documents])
        return self._scoring.document_scores(query, query_cu, self._searched, self._cu, *bank)

    @property
    def searched_bytes(self) -> int:
        if isinstance(self._searched, QuantisedKeys):
            return sum(part.nbytes for part in vars(self._searched).values())
        return self._searched.nbytes


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


def _longest(full: Tensor) -> float:
    """Length of the longest key; block by block, as in _converted."""
    starts = range(0, len(full), _BLOCK)
    return max(
        (float(full[s : s + _BLOCK].float().norm(dim=1).amax()) for s in starts), default=0.0
    )


def _converted(full: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A copy, block by block: the source may be a mapped file larger than the free memory."""
    if full.dtype == dtype and torch.device(device).type != "cpu":
        return full.to(device)
    out = torch.empty(full.shape, dtype=dtype, device=device)
    for start in range(0, len(full), _BLOCK):
        out[start : start + _BLOCK] = full[start : start + _BLOCK].to(device)
    return out


def _quantised(full: Tensor, heads: int, form: str, device: torch.device | str) -> QuantisedKeys:
    blocks = [
        quantise(full[start : start + _BLOCK].to(device), heads, form)
        for start in range(0, max(1, len(full)), _BLOCK)
    ]
    return QuantisedKeys(
        *(torch.cat([vars(block)[name] for block in blocks]) for name in vars(blocks[0]))
    )
