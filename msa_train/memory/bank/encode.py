"""Documents -> what the memory keeps of them: pooled states per router layer (SPEC section 2)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from msa_kernels import chunk_offsets
from torch import Tensor

from data_pipeline.protocol import document_pieces
from data_pipeline.schema import Document
from data_pipeline.tokenizer import Tokenizer
from msa_train.errors import BankError
from msa_train.model.attention import Pooled
from msa_train.model.decoder import MSADecoder

# Measured with the quickstart model: 2,048 to 4,096 tokens stay in the cache of a core; 16,384 cost
# a third more time. A large model on an accelerator wants more.
TOKEN_BUDGET = 4096

Batch = tuple[list[Document], list[list[int]]]  # documents and the tokens of each


@dataclass(frozen=True)
class EncodedBatch:
    """Consecutive documents and their pooled states.

    tokens, chunks [n] count of each document; pooled: router layer -> states of all its chunks.
    """

    documents: list[Document]
    tokens: Tensor
    chunks: Tensor
    pooled: dict[int, Pooled]


def encode_documents(
    model: MSADecoder,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    token_budget: int = TOKEN_BUDGET,
    dtype: torch.dtype = torch.float32,
) -> Iterator[EncodedBatch]:
    """Encodes documents of ascending number in batches of about `token_budget` packed tokens.

    dtype: what the states are kept in; the arithmetic is the model's. A document does not depend on
    what it is batched with. About a batch per thread is held. Raises BankError where numbers
    do not ascend.
    """
    batches = _batches(tokenizer, documents, token_budget)

    def encode(batch: Batch) -> EncodedBatch:
        return _encode(model, *batch, dtype)

    threads = torch.get_num_threads()
    if threads == 1 or model.model.embed_tokens.weight.device.type != "cpu":
        yield from map(encode, batches)
    else:
        yield from _in_parallel(encode, batches, threads)


def _in_parallel(
    encode: Callable[[Batch], EncodedBatch], batches: Iterable[Batch], threads: int
) -> Iterator[EncodedBatch]:
    """A batch per thread, in order: small operations gain little from threads that share each one,
    and lose much (measured: a factor of five) where other processes want the same cores."""
    try:
        with ThreadPoolExecutor(threads, "encode", torch.set_num_threads, (1,)) as pool:
            ahead: deque[Future[EncodedBatch]] = deque()
            for batch in batches:
                ahead.append(pool.submit(encode, batch))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
    finally:
        torch.set_num_threads(threads)  # a thread's setting is also the default of later ones


def _batches(
    tokenizer: Tokenizer, documents: Iterable[Document], token_budget: int
) -> Iterator[Batch]:
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
def _encode(
    model: MSADecoder, documents: list[Document], tokens: list[list[int]], dtype: torch.dtype
) -> EncodedBatch:
    device = model.model.embed_tokens.weight.device
    lengths = torch.tensor([len(ids) for ids in tokens])
    doc_cu = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    packed = torch.tensor([i for ids in tokens for i in ids], device=device)
    pooled = {
        layer: Pooled(*(x.to("cpu", dtype) for x in (states.k, states.v, states.key)))
        for layer, states in model.encode(packed, doc_cu.to(device)).items()
    }
    chunks = chunk_offsets(doc_cu, model.config.router.chunk_size).diff()
    return EncodedBatch(documents, lengths, chunks, pooled)
