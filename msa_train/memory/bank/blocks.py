"""A corpus in blocks. A block is encoded, written and, after an interruption, taken up as a whole.

Where blocks end depends on the documents alone, and no batch crosses an end: the segments of a bank
are the same whoever encoded which of them, and however often the work was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from data_pipeline.schema import Document
from data_pipeline.tokenizer import Tokenizer
from msa_train.memory.bank.encode import TOKEN_BUDGET, encode_documents
from msa_train.memory.bank.lock import WriterLock
from msa_train.memory.bank.manifest import SegmentEntry
from msa_train.memory.bank.segment import Target
from msa_train.model.decoder import MSADecoder

OnBatch = Callable[[int, int], None]  # told after every batch: its documents, its tokens


@dataclass(frozen=True)
class BlockSize:
    """A block ends before it would have more documents, or more characters of text, than this.

    What an interruption costs, and what is held in memory per process, is one block.
    """

    documents: int = 1 << 14
    text: int = 8 << 20


BLOCKS = BlockSize()


def blocks_of(documents: Iterable[Document], size: BlockSize = BLOCKS) -> Iterator[list[Document]]:
    """Consecutive documents, at least one in each block."""
    block: list[Document] = []
    text = 0
    for document in documents:
        full = len(block) == size.documents or text + len(document.text) > size.text
        if block and full:
            yield block
            block, text = [], 0
        block.append(document)
        text += len(document.text)
    if block:
        yield block


class Encoding(Protocol):
    """Who makes segments of blocks."""

    def segments(
        self, blocks: Iterable[list[Document]], target: Target, lock: WriterLock, encoded: OnBatch
    ) -> Generator[SegmentEntry, None, None]:
        """A sealed segment in `target` for every block, in any order, under the writer's lock."""


@dataclass(frozen=True)
class BlockEncoder:
    """Encodes blocks in this process, one after another."""

    model: MSADecoder
    tokenizer: Tokenizer
    token_budget: int = TOKEN_BUDGET

    def segments(
        self, blocks: Iterable[list[Document]], target: Target, lock: WriterLock, encoded: OnBatch
    ) -> Generator[SegmentEntry, None, None]:
        """As Encoding; in order."""
        for block in blocks:
            yield self.segment(block, target, encoded)

    def segment(self, block: list[Document], target: Target, encoded: OnBatch) -> SegmentEntry:
        """The sealed segment of a block."""
        dtype = target.form.torch_dtype
        writer = target.segment(block[0].number)
        try:
            for batch in encode_documents(
                self.model, self.tokenizer, block, self.token_budget, dtype
            ):
                writer.append(batch)
                encoded(len(batch.documents), int(batch.tokens.sum()))
            return writer.seal()
        except BaseException:
            writer.abandon()
            raise
