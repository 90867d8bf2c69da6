"""Hard negatives that a trained router finds: what it wrongly takes for an answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipeline.progress import ProgressBar
from data_pipeline.schema import Query
from data_pipeline.sources.base import NumberConfig
from data_pipeline.sources.dataset_config import DatasetConfig
from data_pipeline.sources.dataset_tables import holds_answer, prepare
from data_pipeline.sources.datasets import whole_bank
from data_pipeline.tokenizer import Tokenizer
from msa_train.evaluation.asking import Asker
from msa_train.evaluation.encoded_bank import EncodedBank


def mine(
    asker: Asker, dataset: DatasetConfig, tokenizer: Tokenizer, prepared: Path, count: int
) -> Iterator[tuple[str, list[str]]]:
    """(question id, ids of at most `count` passages) for every question of the training split.

    The passages are those that the router's layers vote for most, except those that answer the
    question: its positives, and what holds an answer. The best first; some have none.
    """
    tables = prepare(dataset, dataset.split, dataset.document_tokens, tokenizer, prepared)
    bank = whole_bank(tables, NumberConfig(limit=10**9), np.random.default_rng(0))
    memory = EncodedBank.encode(asker.model, tokenizer, bank.documents)
    documents = {document.number: document for document in bank.documents}
    batches = [
        bank.queries[first : first + asker.batch_contexts]
        for first in range(0, len(bank.queries), asker.batch_contexts)
    ]
    view = memory.view()
    with ProgressBar("", "questions", len(bank.queries)) as progress:
        for queries in batches:
            ranked = asker.ranked(view, queries)
            for query, numbers in zip(queries, ranked, strict=True):
                yield query.id, _wrong(query, numbers, documents)[:count]
            progress.advance(len(queries))


def _wrong(query: Query, numbers: list[int], documents) -> list[str]:
    right = {documents[number].id for number in query.positives}
    candidates = (documents[number] for number in numbers)
    return list(
        dict.fromkeys(
            document.id
            for document in candidates
            if document.id not in right and not holds_answer(document.text, query.answers)
        )
    )
