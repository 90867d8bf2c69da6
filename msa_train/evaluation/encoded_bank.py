"""A bank encoded once, in memory, and the views of it that questions are asked of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from msa_kernels import cumulative
from torch import Tensor

from data_pipeline.progress import ProgressBar
from data_pipeline.schema import Document
from data_pipeline.tokenizer import Tokenizer
from msa_train.memory.bank.encode import encode_documents
from msa_train.memory.search.in_memory import joined, view_of
from msa_train.memory.search.view import MemoryView
from msa_train.model.attention import Pooled
from msa_train.model.config import RouterConfig
from msa_train.model.decoder import MSADecoder

STATES = torch.float16  # what a bank on disk keeps: what is measured is what is served


@dataclass(frozen=True)
class EncodedBank:
    """n documents, ascending by number, with their pooled states.

    tokens [n] with wrapper; pooled: router layer -> states of all chunks; chunk_cu [n+1].
    """

    documents: tuple[Document, ...]
    tokens: np.ndarray
    pooled: dict[int, Pooled]
    chunk_cu: Tensor
    router: RouterConfig

    @classmethod
    def encode(
        cls, model: MSADecoder, tokenizer: Tokenizer, documents: Sequence[Document]
    ) -> EncodedBank:
        batches = []
        with ProgressBar("encoding", "documents", len(documents), "tokens") as progress:
            for batch in encode_documents(model, tokenizer, documents, dtype=STATES):
                batches.append(batch)
                progress.advance(len(batch.documents), int(batch.tokens.sum()))
        tokens = torch.cat([batch.tokens for batch in batches]).numpy()
        return cls(tuple(documents), tokens, *joined(batches), model.config.router)

    @property
    def numbers(self) -> list[int]:
        return [document.number for document in self.documents]

    def view(self, places: np.ndarray | None = None) -> MemoryView:
        """The memory of the documents at `places` (ascending), or of all."""
        chosen = None if places is None else torch.from_numpy(places)
        return view_of(self.documents, self.pooled, self.chunk_cu, self.router, chosen)

    def nothing(self) -> MemoryView:
        """Control: a memory without documents."""
        return self.view(np.empty(0, dtype=np.int64))

    def part(self, places: np.ndarray) -> EncodedBank:
        """The documents at `places` (ascending) as a bank of their own."""
        lengths = self.chunk_cu.diff()[places]
        rows = torch.cat([torch.arange(*self.chunk_cu[place : place + 2]) for place in places])
        return replace(
            self,
            documents=tuple(self.documents[place] for place in places),
            tokens=self.tokens[places],
            pooled={n: states.map(lambda x: x[rows]) for n, states in self.pooled.items()},
            chunk_cu=cumulative(lengths),
        )

    def misrouted(self, seed: int) -> EncodedBank:
        """Control: every chunk found under another's router key, in all layers alike.

        Scores, and so the gate, are as sharp as ever; what they lead to is random.
        """
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(int(self.chunk_cu[-1]), generator=generator)
        pooled = {
            layer: replace(states, key=states.key[order]) for layer, states in self.pooled.items()
        }
        return replace(self, pooled=pooled)
