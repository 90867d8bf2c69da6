"""Router keys of consecutive documents in one layer, in the form in which they are searched.

A search in a narrow form is rough; `error` and `norm` say by how much it can be off, so that
shard.py can score again, in full precision, every document that might belong to the best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from msa_kernels import (
    BlockScores,
    PreparedKeys,
    QuantisedKeys,
    prepared_scores,
    quantise,
    quantised_document_scores,
)
from torch import Tensor

from msa_train.errors import ConfigError
from msa_train.memory.search.settings import KeyForm
from msa_train.model.config import RouterConfig

_FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_BLOCK = 1 << 16  # chunks that are converted at once


class LayerKeys:
    """Keys [C, V] of n documents; `full` are those of the bank, wherever they lie.

    chunk_cu [n+1]. form: "stored" searches `full` itself; the others are copies on `device`.
    error: by how much a key may be off, as a length: [n] the worst of a document, or one number
    for all. norm: no key is longer. Raises ConfigError for a form that rounds keys where a score is
    no single dot product, for which there is no bound.
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
        self.full, self.chunk_cu, self._router = full, chunk_cu.to(device), router
        self.error: Tensor | float = 0.0
        # Heads of unit length, a little more once they were rounded to be stored.
        longest = router.scoring.longest_key(heads)
        self.norm = 1.001 * (_longest(full) if longest is None else longest)
        self._searched: Tensor | QuantisedKeys
        if form == "stored":
            self._searched = full.to(device)
        elif form in _FLOATS:
            self._searched = _converted(full, _FLOATS[form], device)
            self.error = self.norm * _eps(_FLOATS[form]) if narrower else 0.0
        else:
            self._searched = _quantised(full, heads, form, device)
            worst = self._searched.error.new_zeros(len(chunk_cu) - 1)
            document = torch.arange(len(worst), device=device).repeat_interleave(
                self.chunk_cu.diff()
            )
            self.error = worst.scatter_reduce_(0, document, self._searched.error, "amax")
        on_cpu = torch.device(device).type == "cpu" and router.scoring.certifiable
        self.prepared = PreparedKeys(self._searched, self.chunk_cu) if on_cpu else None

    def scores(self, query: Tensor, query_cu: Tensor) -> Tensor:
        """[m, n] by the keys as they are searched, on their device."""
        query, query_cu = query.to(self.chunk_cu.device), query_cu.to(self.chunk_cu.device)
        if isinstance(self._searched, QuantisedKeys):
            return quantised_document_scores(query, query_cu, self._searched, self.chunk_cu)
        bank = query_cu.new_zeros(len(query_cu) - 1)
        whole = query_cu.new_tensor([0, len(self.chunk_cu) - 1])
        given = query, query_cu, self._searched, self.chunk_cu, bank, whole
        return self._router.scoring.document_scores(*given)

    @property
    def searched_bytes(self) -> int:
        if isinstance(self._searched, QuantisedKeys):
            parts = vars(self._searched).values()
            return sum(part.nbytes for part in parts)
        return self._searched.nbytes


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _longest(full: Tensor) -> float:
    """Length of the longest key; block by block, as in _converted."""
    starts = range(0, len(full), _BLOCK)
    return max(
        (float(full[s : s + _BLOCK].float().norm(dim=1).amax()) for s in starts), default=0.0
    )


def rough_scores(
    keys: Sequence[LayerKeys], query: Tensor, query_cu: Tensor, gone: Tensor | None
) -> BlockScores:
    """Scores of the documents of several parts, one after another; gone [n]: those without."""
    prepared = [part.prepared for part in keys if part.prepared is not None]
    if len(prepared) == len(keys):
        return prepared_scores(prepared, query, query_cu, gone)
    found = [part.scores(query, query_cu) for part in keys]
    scores = found[0] if len(found) == 1 else torch.cat(found, 1)
    if gone is not None:
        scores.masked_fill_(gone.to(scores.device), -math.inf)
    edges = torch.tensor([0, scores.shape[1]])
    return BlockScores(scores, scores.amax(1, keepdim=True), edges)


def joined_error(keys: Sequence[LayerKeys]) -> Tensor:
    """Of several parts: one number for all where each has one, else [n]."""
    if not any(isinstance(part.error, Tensor) for part in keys):
        return torch.tensor(max(part.error for part in keys))
    full = [
        part.error if isinstance(part.error, Tensor)
        else torch.full((len(part.chunk_cu) - 1,), part.error)
        for part in keys
    ]  # fmt: skip
    return torch.cat(full)


def _converted(full: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A copy, block by block: the source may be a mapped file larger than what is free."""
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
