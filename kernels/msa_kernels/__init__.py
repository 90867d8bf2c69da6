"""Memory Sparse Attention as operations on packed tensors: pooling, routing, attention.

Importable alone: torch, and triton where it is installed. `reference` owns the semantics;
`backend_report()` says which backend runs each operation here, and why. Every operation that
learns is a torch.library operator: torch.compile takes it as one node.

An operation is one file, the torch path first, then operator, gradient and public function; its
Triton kernels and their launchers are the file of the same name that ends in _triton, imported only
when chosen. No length is a compile-time constant there, and nothing depends on the order in which
programs run.

Shape letters: N tokens, n documents, C chunks, m contexts, b banks, H query heads, G key/value
heads, D head dim, V = G*D, K documents selected, S selected chunk entries (ragged over contexts).
`*_cu` are cumulative lengths: int64 [count + 1], first entry 0.
"""

from msa_kernels.attend import context_attention, document_attention
from msa_kernels.dispatch import backend_report
from msa_kernels.errors import KernelError
from msa_kernels.norm_rope import norm_rope
from msa_kernels.pool import chunk_mean
from msa_kernels.prepared import BlockScores, PreparedKeys, prepared_scores
from msa_kernels.quantised import QuantisedKeys, quantise, quantised_document_scores
from msa_kernels.ragged import chunk_offsets, cumulative
from msa_kernels.scores import chunk_scores, document_scores
from msa_kernels.selection import select_chunks, top_documents

__all__ = [
    "BlockScores",
    "KernelError",
    "PreparedKeys",
    "QuantisedKeys",
    "backend_report",
    "chunk_mean",
    "chunk_offsets",
    "chunk_scores",
    "context_attention",
    "cumulative",
    "document_attention",
    "document_scores",
    "norm_rope",
    "prepared_scores",
    "quantise",
    "quantised_document_scores",
    "select_chunks",
    "top_documents",
]
