"""How long a text takes to be split, and whether the time grows with its length alone:
`msa bench split`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.sources.pydocs import PydocsConfig, PydocsSource
from data_pipeline.tokenizer import Tokenizer
from msa_train.interop.export import load_export
from msa_train.memory.bank.corpus import Splitting
from msa_train.memory.bank.documents import StoredDocument

CHARACTERS = 1_000_000
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_HAN = "雨港鶴山川海空木花鳥風月"


def measure(export: Path, characters: int = CHARACTERS) -> list[dict[str, Any]]:
    """Rows of prose, letters without spaces, and Han, each of a quarter and all of the characters.

    seconds: CPU time of splitting one text into parts as `msa memory build` does.
    """
    tokenizer = load_export(export).tokenizer
    return [
        _row(tokenizer, kind, text[:size])
        for kind, text in _texts(tokenizer, characters).items()
        for size in (characters // 4, characters)
    ]


def _row(tokenizer: Tokenizer, kind: str, text: str) -> dict[str, Any]:
    began = time.process_time()
    parts = list(Splitting(tokenizer)([StoredDocument(0, text)]))
    seconds = time.process_time() - began
    return {
        "text": kind,
        "characters": len(text),
        "parts": len(parts),
        "seconds": round(seconds, 3),
        "us_per_character": round(1e6 * seconds / len(text), 2),
    }


def _texts(tokenizer: Tokenizer, characters: int) -> dict[str, str]:
    entries = (entry.text for entry in PydocsSource(PydocsConfig(), tokenizer).entries)
    return {
        "prose": _filled(entries, characters),
        "letters": _drawn(_LETTERS, characters),
        "han": _drawn(_HAN, characters),
    }


def _filled(texts: Iterable[str], characters: int) -> str:
    """Texts one after the other, and again from the first, up to so many characters."""
    return "".join(islice(cycle("".join(f"{text}\n" for text in texts)), characters))


def _drawn(alphabet: str, characters: int) -> str:
    return "".join(np.random.default_rng(0).choice(list(alphabet), characters).tolist())
