"""Stale router keys of recent banks as further negatives, after MoCo (He et al. 2020).

A step then sees a hundred times more documents than it encodes; their keys take no gradient, and
what is learned against them is learned by the queries (losses.stale_loss_sum).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from msa_kernels import cumulative
from torch import Tensor

from msa_train.model.config import RouterConfig
from msa_train.model.router import Routing
from msa_train.model.transfer import moved


class KeyQueue:
    """The router keys of the newest documents, by router layer; oldest first.

    A document is known by `doc_ids` (a digest of its text): what stands in the bank itself is not a
    negative of its own questions a second time. limit: documents kept; 0 keeps none (see keep).
    """

    def __init__(self, layers: Sequence[int], limit: int = 0):
        self.limit, self._layers = limit, tuple(layers)
        self._keys: dict[int, Tensor] = {}  # layer -> [C, V]
        self._chunks = torch.zeros(0, dtype=torch.int64)  # [q] of each document, on the host
        self._ids = torch.zeros(0, dtype=torch.int64)  # [q], on the host

    def __len__(self) -> int:
        return len(self._ids)

    def scores(self, layer: int, routing: Routing, doc_ids: Tensor, router: RouterConfig) -> Tensor:
        """[m, q] float32 scores of the queued documents; -inf for those of the bank, doc_ids [n] on
        the host.

        Gradients reach the router queries alone.
        """
        device = routing.query.device
        bank = torch.zeros(len(routing.query_cu) - 1, dtype=torch.int64)
        tables = (
            cumulative(self._chunks),
            bank,
            torch.tensor([0, len(self)]),
            torch.isin(self._ids, doc_ids),
        )
        *tables, own = moved(tables, device)
        keys = self._keys[layer] = self._keys[layer].to(device)  # those of a checkpoint were not
        scores = router.scoring.document_scores(routing.query, routing.query_cu, keys, *tables)
        return scores.masked_fill(own, -math.inf)

    def keep(self, limit: int) -> None:
        """As a stage has it, from its first step on: 0 forgets those of the stage before, too."""
        self.limit = limit
        if not limit and len(self):
            self.load_state_dict(KeyQueue(self._layers).state_dict())

    def add(self, keys: dict[int, Tensor], chunks: Tensor, doc_ids: Tensor) -> None:
        """Documents of a bank: keys [C, V] of each layer; chunks [n], doc_ids [n] on the host."""
        if not self.limit:
            return
        fresh = ~torch.isin(self._ids, doc_ids)  # a document that comes again is kept once, anew
        total = int(fresh.sum()) + len(doc_ids)
        if (over := total - self.limit) > 0:
            gone = fresh.nonzero().squeeze(1)[:over]
            fresh[gone] = False
        kept = fresh.repeat_interleave(self._chunks).nonzero().squeeze(1)
        for layer in self._layers:
            new = keys[layer].detach()
            old = self._keys.get(layer, new[:0]).to(new.device)
            (rows,) = moved([kept], new.device)
            self._keys[layer] = torch.cat([old[rows], new])
        self._chunks = torch.cat([self._chunks[fresh], chunks])
        self._ids = torch.cat([self._ids[fresh], doc_ids])

    def merge(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Become one of several queues, by their state_dict: of each the newest documents, so many
        that there are as many as before."""
        self.load_state_dict(KeyQueue(self._layers).state_dict())
        limit, self.limit = self.limit, sum(len(state["ids"]) for state in states)
        for state in states:
            first = len(state["ids"]) - math.ceil(len(state["ids"]) / len(states))
            begin = int(state["chunks"][:first].sum())
            if len(state["ids"]):
                keys = {n: state[f"keys{n}"][begin:] for n in self._layers}
                self.add(keys, state["chunks"][first:], state["ids"][first:])
        self.limit = limit

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, to continue bit for bit."""
        keys = {f"keys{layer}": tensor.cpu() for layer, tensor in self._keys.items()}
        return {"chunks": self._chunks, "ids": self._ids, **keys}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._chunks, self._ids = state["chunks"], state["ids"]
        self._keys = {n: state[f"keys{n}"] for n in self._layers if f"keys{n}" in state}
