"""What an exact search in 8-bit router keys costs: the documents it has to score again.

Measured with the search that serves, on a bank's own keys with real questions, and on keys and
queries in random directions beside them, whose scores lie closer together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from msa_kernels import document_scores, top_documents
from torch import Tensor

from data_pipeline.protocol import prompt_pieces
from data_pipeline.tokenizer import Tokenizer
from msa_train.bench.memory.layer import LAYER, layer_searcher
from msa_train.errors import ConfigError
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.engine.engine import BATCH_CONTEXTS
from msa_train.memory.engine.model_runner import prefill_pieces
from msa_train.memory.search.loader import BankLoader, bank_view
from msa_train.memory.search.settings import KeyForm, TierSettings
from msa_train.model.config import ModelConfig
from msa_train.model.decoder import MSADecoder

FORMS: tuple[KeyForm, ...] = ("int8", "fp8")


@torch.inference_mode()
def certified_candidates(
    model: MSADecoder, tokenizer: Tokenizer, bank: BankSnapshot, asked: list[str]
) -> list[dict[str, Any]]:
    """A row per router layer, kind of keys and form: candidates of a search for top_k documents.

    asked: texts of questions. Raises ConfigError where the model's score is no single dot product,
    which 8-bit keys need.
    """
    config = model.config
    if not config.router.scoring.certifiable:
        raise ConfigError("model.router: its scores are no single dot product, 8-bit keys need one")
    memory = bank_view(bank, config.router, BankLoader(TierSettings(), model.device))
    searches = list(_searches(bank, config, model.device))
    for start in range(0, len(asked), BATCH_CONTEXTS):
        pieces = [prompt_pieces(text) for text in asked[start : start + BATCH_CONTEXTS]]
        readings = prefill_pieces(model, tokenizer, memory, pieces).selected
        for search in searches:
            routing = readings[search.layer].routing
            search.run(routing.query, routing.query_cu)
    return [search.row() for search in searches]


def _searches(bank: BankSnapshot, config: ModelConfig, device: torch.device) -> Iterator[_Searches]:
    for layer in config.router_layers:
        trained = bank.router_keys(layer).to(device).float()
        for kind, keys in (
            ("trained", trained),
            ("random", _turned(trained, config.router_key_heads)),
        ):
            for form in FORMS:
                yield _Searches(layer, kind, form, keys, bank.chunk_cu, config)


class _Searches:
    """Searches in the keys [C, V] of one layer, and what they took."""

    def __init__(
        self,
        layer: int,
        kind: str,
        form: KeyForm,
        keys: Tensor,
        chunk_cu: Tensor,
        config: ModelConfig,
    ):
        self.layer, self._kind, self._form = layer, kind, form
        self._full, self._chunk_cu = keys, chunk_cu
        self._heads, self._k = config.router_key_heads, config.router.top_k
        self._searcher = layer_searcher(keys, chunk_cu, self._heads, config.router, form)
        self._candidates: list[Tensor] = []
        self._same = True

    def run(self, query: Tensor, query_cu: Tensor) -> None:
        if self._kind == "random":
            query = _turned(query, self._heads)
        contexts, k = len(query_cu) - 1, min(self._k, len(self._chunk_cu) - 1)
        context, _ = self._searcher.certified(LAYER).candidates(query, query_cu, k)
        self._candidates.append(torch.bincount(context, minlength=contexts))
        found = self._searcher.best(LAYER, query, query_cu, k)
        truth = self._best_in_full_precision(query, query_cu, k)
        self._same &= torch.equal(found.places.cpu(), truth.cpu())

    def _best_in_full_precision(self, query: Tensor, query_cu: Tensor, k: int) -> Tensor:
        """[m, k] the best of all documents, each scored in float64 by its full keys."""
        bank = query_cu.new_zeros(len(query_cu) - 1)
        whole = query_cu.new_tensor([0, len(self._chunk_cu) - 1])
        chunk_cu = self._chunk_cu.to(query.device)
        given = query.double(), query_cu, self._full.double(), chunk_cu, bank, whole
        return top_documents(document_scores(*given).float(), k)[1]

    def row(self) -> dict[str, Any]:
        candidates, documents = torch.cat(self._candidates).double(), len(self._chunk_cu) - 1
        return {
            "layer": self.layer,
            "keys": self._kind,
            "form": self._form,
            "documents": documents,
            "chunks": len(self._full),
            "questions": len(candidates),
            "top_k": self._k,
            "candidates_mean": round(float(candidates.mean()), 1),
            "candidates_max": int(candidates.max()),
            "share_mean": round(float(candidates.mean()) / documents, 4),
            "as_full_precision": self._same,
        }


def _turned(rows: Tensor, heads: int) -> Tensor:
    """[T, V] with every head in a random direction, as long as it was."""
    parts = rows.unflatten(1, (heads, -1))
    random = torch.Generator().manual_seed(len(rows))
    drawn = torch.randn(parts.shape, generator=random).to(parts.device)
    return (F.normalize(drawn, dim=2) * parts.norm(dim=2, keepdim=True)).flatten(1)
