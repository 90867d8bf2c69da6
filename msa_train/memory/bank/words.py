"""Documents in whose title or text given words stand: a plain scan, without an index."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from msa_train.memory.bank.filters import remembered
from msa_train.memory.bank.segment import Segment
from msa_train.memory.bank.snapshot import BankSnapshot


def with_words(
    bank: BankSnapshot, words: str, going_on: Callable[[], None] = lambda: None
) -> Tensor:
    """[n] bool over bank.numbers, False for removed documents: where every word (what spaces part)
    stands in the title or the text, upper or lower case alike, also as a part of a longer word.

    Reads every title and text once per segment and question. going_on: called between record
    batches; it raises to stop. Raises BankError where the documents were changed on disk.
    """
    found, wanted = bank.live.clone(), list(dict.fromkeys(words.split()))
    for segment, (start, end) in zip(bank.segments, pairwise(bank.starts), strict=True):
        part = found[start:end]
        if wanted and bool(part.any()):
            part &= torch.from_numpy(_in_segment(segment, wanted, going_on))
    return found


def _in_segment(segment: Segment, words: list[str], going_on: Callable[[], None]) -> np.ndarray:
    """[n] bool over the documents of a segment."""

    def scan() -> np.ndarray:
        segment.check_documents()
        titles, texts = (segment.documents.column(name) for name in ("title", "text"))
        found = [np.zeros(0, dtype=bool)]
        for title, text in zip(titles.iterchunks(), texts.iterchunks(), strict=True):
            there = np.ones(len(text), dtype=bool)
            for word in words:
                going_on()
                hits = (pc.match_substring(each, word, ignore_case=True) for each in (title, text))
                there &= pc.or_(*hits).to_numpy(zero_copy_only=False)
            found.append(there)
        return np.concatenate(found)

    return remembered(segment, ["words", *words], scan)
