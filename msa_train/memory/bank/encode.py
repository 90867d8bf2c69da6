"""Documents -> what a memory keeps of them: pooled states per router layer (SPEC section 2).

A bank is encoded in blocks. A block is encoded, written and, after an interruption, reused as a
whole. Where blocks end depends on the documents alone, and no batch crosses an end: the segments of
a bank are the same whoever encoded which of them, and however often the work was interrupted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from msa_kernels import chunk_offsets, cumulative
from msa_kernels.ragged import chunk_token_offsets

from data_pipeline.protocol import document_pieces
from data_pipeline.schema import Document
from data_pipeline.tokenizer import Tokenizer
from msa_train.errors import BankError
from msa_train.memory.bank.lock import WriterLock
from msa_train.memory.bank.manifest import SegmentEntry
from msa_train.memory.bank.segment import STATES, EncodedBatch, Target
from msa_train.model.attention import Pooled
from msa_train.model.decoder import MSADecoder
from msa_train.model.transfer import Downloads, uploaded

# Measured with the quickstart model: 2,048 to 4,096 tokens fit in the cache of a core; 16,384 take
# a third longer. A GPU wants more, to be busy (unmeasured).
TOKEN_BUDGET, GPU_TOKEN_BUDGET = 4096, 16384

Batch = tuple[list[Document], list[list[int]]]  # documents and the tokens of each
Item, Result = TypeVar("Item"), TypeVar("Result")


def encode_documents(
    model: MSADecoder,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    token_budget: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[EncodedBatch]:
    """Encodes documents of ascending number in batches of about `token_budget` packed tokens (None:
    as many as suit the model's device).

    dtype: of the states returned; the arithmetic is done in the model's. A document's states do not
    depend on what it is batched with. About one batch per thread is held in memory, and two on a
    GPU. Raises BankError where numbers do not ascend.
    """
    budget = usual_budget(model.device) if token_budget is None else token_budget
    batches = document_batches(tokenizer, documents, budget)
    downloads = Downloads(model.device)
    coming = in_threads(lambda batch: begun(model, *batch, dtype, downloads), batches, model.device)
    # A GPU has its next batch to do while the last one is copied, waited for and written.
    behind = 1 if model.device.type == "cuda" else 0
    waiting: deque[Callable[[], EncodedBatch]] = deque()
    for each in coming:
        waiting.append(each)
        if len(waiting) > behind:
            yield waiting.popleft()()
    yield from (each() for each in waiting)


def usual_budget(device: torch.device) -> int:
    """Packed tokens of a batch, about."""
    return GPU_TOKEN_BUDGET if device.type == "cuda" else TOKEN_BUDGET


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], device: torch.device
) -> Iterator[Result]:
    """Results in order: on a CPU one item per thread, elsewhere one after another.

    About one item per thread is held in memory. Threads that share each small operation gain
    little, and lose a factor of five (measured) where other processes compete for the cores.
    """
    threads = torch.get_num_threads()
    if threads == 1 or device.type != "cpu":
        yield from map(work, items)
        return
    try:
        with ThreadPoolExecutor(threads, "encode", torch.set_num_threads, (1,)) as pool:
            ahead: deque[Future[Result]] = deque()
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
    finally:
        torch.set_num_threads(threads)  # the threads' setting became the default


def document_batches(
    tokenizer: Tokenizer, documents: Iterable[Document], token_budget: int = TOKEN_BUDGET
) -> Iterator[Batch]:
    """Documents of ascending number with their tokens, about `token_budget` tokens a batch."""
    batch: list[Document] = []
    tokens: list[list[int]] = []
    total, previous = 0, -1
    for document in documents:
        if document.number <= previous:
            raise BankError(
                f"document number {document.number} follows {previous}: "
                "give the documents of a bank in ascending number, each once"
            )
        previous = document.number
        ids = tokenizer.encode_pieces(document_pieces(document.number, document.text)).tokens
        if batch and total + len(ids) > token_budget:
            yield batch, tokens
            batch, tokens, total = [], [], 0
        batch.append(document)
        tokens.append(ids)
        total += len(ids)
    if batch:
        yield batch, tokens


@torch.inference_mode()
def begun(
    model: MSADecoder,
    documents: list[Document],
    tokens: list[list[int]],
    dtype: torch.dtype,
    downloads: Downloads,
) -> Callable[[], EncodedBatch]:
    """What waits for the states of a batch whose encoding has begun, and gives them."""
    lengths = torch.tensor([len(ids) for ids in tokens])
    doc_cu = cumulative(lengths)
    size = model.config.router.chunk_size
    chunks, token_cu = chunk_offsets(doc_cu, size).diff(), chunk_token_offsets(doc_cu, size)
    given = [[i for ids in tokens for i in ids], doc_cu.numpy(), token_cu.numpy()]
    found = model.encode(*uploaded(given, model.device))
    kinds = [getattr(states, kind) for states in found.values() for kind in STATES]
    coming = downloads.begin(kinds, dtype)

    def result() -> EncodedBatch:
        there = iter(coming.result())
        pooled = {layer: Pooled(*(next(there) for _ in STATES)) for layer in found}
        return EncodedBatch(documents, lengths, chunks, pooled)

    return result


OnBatch = Callable[[int, int], None]  # called with the documents and tokens of a batch


@dataclass(frozen=True)
class BlockSize:
    """A block ends before it would have more documents, or more characters of text, than this.

    An interruption costs at most one block per process, and each process holds one in memory.
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
    """What turns blocks into segments: BlockEncoder here, or other processes."""

    def segments(
        self, blocks: Iterable[list[Document]], target: Target, lock: WriterLock, encoded: OnBatch
    ) -> Generator[SegmentEntry, None, None]:
        """A sealed segment in `target` for every block, in any order; `lock` is held meanwhile."""


@dataclass(frozen=True)
class BlockEncoder:
    """Encodes blocks in this process, one after another."""

    model: MSADecoder
    tokenizer: Tokenizer
    token_budget: int | None = None

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
