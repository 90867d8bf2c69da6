"""How a router scores documents, as one object: its vectors, scores, error bound, published name.

`RouterConfig.scoring` is the only way to one. A further scoring is one class here, see
docs/extending.md. Settings are checked with this module before anything heavy is loaded, so
torch and the kernels are imported where they are used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from itertools import product
from math import inf, sqrt
from typing import TYPE_CHECKING, Any, ClassVar

from msa_train.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Scoring(ABC):
    """Scores of documents by router projections (SPEC section 2), as the settings say.

    certifiable: a document's score is the largest dot product of one of the context's query vectors
    and one of the document's keys. Then a key that is off by e moves no score by more than
    e |query|, so that rounded keys can be searched exactly, and 8-bit and prepared keys exist.
    tensor_parallel: the vectors of each rank's heads, side by side, are those of the whole model.
    published: the published code has this scoring, and serves it as trained.
    reductions: the settings (head_reduce, query_reduce, chunk_reduce) that ask for this scoring.
    """

    similarity: str
    decouple: bool
    head_reduce: str
    query_reduce: str
    chunk_reduce: str

    certifiable: ClassVar[bool]
    tensor_parallel: ClassVar[bool]
    published: ClassVar[bool]
    reductions: ClassVar[Collection[tuple[str, str, str]]]

    @abstractmethod
    def join_heads(self, rq: Tensor, kv_heads: int, total_heads: int, scale: float = 1.0) -> Tensor:
        """Query vectors [T, ...] times `scale` of normalised router queries [T, heads, D]."""

    @abstractmethod
    def document_scores(
        self, query: Tensor, query_cu: Tensor, keys: Tensor, chunk_cu: Tensor, ctx_bank: Tensor,
        bank_cu: Tensor,
    ) -> Tensor:  # fmt: skip
        """[m, n] float32 document scores, -inf outside the context's bank.

        query, query_cu [m+1]: of query_vectors; keys [C, V] of key_vectors, chunk_cu [n+1];
        ctx_bank [m]; bank_cu [b+1].
        """

    def chunk_scores(
        self, query: Tensor, query_cu: Tensor, keys: Tensor, index: Tensor, index_cu: Tensor
    ) -> Tensor | None:
        """[S] scores of the chunks keys[index], entries of context c at index_cu[c]:index_cu[c+1].

        A document's score is the best of its chunks'. None where a chunk has no score of its own.
        """
        return None

    def pool_tokens(
        self, states: Tensor, query_cu: Tensor, asking: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What router queries are projected from: a row [d] per query token, as it comes.

        asking [m']: the contexts with query tokens, where they are known; on a GPU the host would
        wait for their number.
        """
        return states, query_cu

    def vectors_of(self, tokens: Tensor) -> Tensor:
        """[m] How many vectors score for contexts of so many query tokens [m]."""
        return tokens

    def query_vectors(
        self, rq: Tensor, query_cu: Tensor, kv_heads: int, total_heads: int
    ) -> tuple[Tensor, Tensor]:
        """Vectors to score by, and how many rows of them each context has (cumulative, [m+1]).

        rq [T, heads, D]: router queries of `kv_heads` GQA groups, packed by query_cu. `total_heads`
        is H of the whole model: under tensor parallelism rq holds a part of the heads.
        """
        # As published: raw dot products, and the coupled router, are scaled by D^-1/2.
        plain = self.similarity == "cosine" and self.decouple
        scale = 1.0 if plain else rq.shape[-1] ** -0.5
        return self.join_heads(self._compared(rq), kv_heads, total_heads, scale), query_cu

    def key_vectors(self, rk: Tensor) -> Tensor:
        """[C, kv_heads*D] from chunk-pooled router keys [C, kv_heads, D]."""
        return self._compared(rk).flatten(1)

    def _compared(self, heads: Tensor) -> Tensor:
        """At least float32; of unit length where similarity is cosine."""
        from torch.nn.functional import normalize

        heads = heads.float() if heads.dtype.itemsize < 4 else heads
        return normalize(heads, dim=-1) if self.similarity == "cosine" else heads

    def longest_key(self, kv_heads: int) -> float | None:
        """No key vector is longer; None where that must be measured."""
        return sqrt(kv_heads) if self.similarity == "cosine" else None

    @property
    def scores_chunks(self) -> bool:
        """Whether each chunk has a score of its own, which a gate can weigh."""
        return type(self).chunk_scores is not Scoring.chunk_scores

    def to_published(self) -> dict[str, Any]:
        """Entries of the published msa_config.

        Cosine routing is written as INFONCE, the one word the published engine serves as cosine.
        """
        return {
            "decouple_router": self.decouple,
            "decouple_pooling_mode": "mean",
            "head_reduce_method": self.head_reduce,
            "query_reduce_method": self.query_reduce,
            "chunk_reduce_method": self.chunk_reduce,
            "aux_loss_method": "INFONCE" if self.similarity == "cosine" else "INFONCE_DECOUPLE",
        }


SCORINGS: list[type[Scoring]] = []


def register(scoring: type[Scoring]) -> type[Scoring]:
    """A class of a scoring that settings may ask for from now on."""
    SCORINGS.append(scoring)
    return scoring


def scoring_of(
    similarity: str, decouple: bool, head_reduce: str, query_reduce: str, chunk_reduce: str
) -> Scoring | None:
    """The scoring that handles these settings; None where there is none."""
    reductions = head_reduce, query_reduce, chunk_reduce
    for scoring in SCORINGS:
        if reductions in scoring.reductions:
            return scoring(similarity, decouple, *reductions)
    return None


def from_published(msa: dict[str, Any], normalised: bool) -> dict[str, Any]:
    """Fields of RouterConfig from a published msa_config.

    normalised: route by cosine also where the published serving code would not. Raises
    CheckpointError for reductions that no scoring handles.
    """
    cosine = normalised or msa.get("aux_loss_method") == "INFONCE"
    fields = {
        "similarity": "cosine" if cosine else "dot",
        "decouple": msa.get("decouple_router", True),
        "head_reduce": msa.get("head_reduce_method", "mean"),
        "query_reduce": msa.get("query_reduce_method", "max"),
        "chunk_reduce": msa.get("chunk_reduce_method", "max"),
    }
    if scoring_of(**fields) is None:
        raise CheckpointError(
            "msa_config has head_reduce_method {head_reduce!r}, query_reduce_method "
            "{query_reduce!r}, chunk_reduce_method {chunk_reduce!r}: no scoring here handles these "
            "together".format(**fields)
        )
    return fields


@register
class DotProduct(Scoring):
    """Mean over heads, maximum over tokens and chunks: ONE dot product (SPEC section 2, "Exact
    shortcut").

    A query vector [V] is the normalised router query summed over each GQA group, divided by H; a
    key vector [V] the pooled, then normalised keys of all heads side by side.
    """

    certifiable = tensor_parallel = published = True
    reductions = (("mean", "max", "max"),)

    def join_heads(self, rq: Tensor, kv_heads: int, total_heads: int, scale: float = 1.0) -> Tensor:
        """[T, kv_heads*D]"""
        return rq.unflatten(1, (kv_heads, -1)).sum(2).flatten(1) * (scale / total_heads)

    def document_scores(self, *given: Tensor) -> Tensor:
        from msa_kernels import document_scores

        return document_scores(*given)

    def chunk_scores(self, *given: Tensor) -> Tensor:
        from msa_kernels import chunk_scores

        return chunk_scores(*given)


@register
class PooledQuery(DotProduct):
    """One query vector per context: the mean of its query tokens' projections, then normalised per
    head (SPEC section 8). A projection is linear: it is taken of the mean, once per context."""

    published = False
    reductions = (("mean", "pooled", "max"),)

    def vectors_of(self, tokens: Tensor) -> Tensor:
        return (tokens > 0).long()

    def pool_tokens(
        self, states: Tensor, query_cu: Tensor, asking: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """[m', d] means in the order of contexts; one without query tokens has none."""

        from msa_kernels.ragged import cumulative, segment_ids

        counts = query_cu.diff()
        vectors = self.vectors_of(counts)
        if asking is None:
            asking = vectors.nonzero().squeeze(1)
        wide = states.float() if states.dtype.itemsize < 4 else states
        sums = wide.new_zeros(len(counts), states.shape[1])
        sums = sums.index_add(0, segment_ids(query_cu, len(states)), wide)[asking]
        return (sums / counts[asking, None]).to(states.dtype), cumulative(vectors)


@register
class PerHead(Scoring):
    """The published reductions that are no single dot product, head by head.

    Scores per head are materialised and reduced in the published order: heads, tokens, chunks.
    """

    certifiable = tensor_parallel = False
    published = True
    reductions = tuple(product(("max", "mean"), ("max", "mean", "last"), ("max", "mean")))

    def join_heads(self, rq: Tensor, kv_heads: int, total_heads: int, scale: float = 1.0) -> Tensor:
        """[T, H, D]"""
        return rq * scale

    def document_scores(
        self, query: Tensor, query_cu: Tensor, keys: Tensor, chunk_cu: Tensor, ctx_bank: Tensor,
        bank_cu: Tensor,
    ) -> Tensor:  # fmt: skip
        import torch

        if len(chunk_cu) == 1:  # no scores, of which the queries have no gradient, but in the graph
            return query.float().sum() * query.new_zeros(len(ctx_bank), 0, dtype=torch.float32)
        keys = keys.unflatten(1, (-1, query.shape[-1]))
        keys = keys.repeat_interleave(query.shape[1] // keys.shape[1], 1)
        rows = []
        for context, bank in enumerate(ctx_bank.tolist()):
            row = [query.new_tensor(-inf, dtype=torch.float32)] * (len(chunk_cu) - 1)
            q = query[query_cu[context] : query_cu[context + 1]]
            for document in range(int(bank_cu[bank]), int(bank_cu[bank + 1])):
                k = keys[chunk_cu[document] : chunk_cu[document + 1]].to(q.dtype)
                if len(q) and len(k):
                    row[document] = self._reduced(torch.einsum("thd,chd->htc", q, k).float())
            rows.append(torch.stack(row))
        return torch.stack(rows)

    def _reduced(self, scores: Tensor) -> Tensor:
        """Scalar score of a document from per-head scores [H, T, C]."""
        tokens = scores.mean(0) if self.head_reduce == "mean" else scores.amax(0)
        if self.query_reduce == "last":
            chunks = tokens[-1]
        else:
            chunks = tokens.amax(0) if self.query_reduce == "max" else tokens.mean(0)
        return chunks.amax() if self.chunk_reduce == "max" else chunks.mean()
