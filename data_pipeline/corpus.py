"""The texts of a corpus, and the tokenizer that is trained on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_pipeline import protocol
from data_pipeline.mixture import DataConfig
from data_pipeline.schema import Piece
from data_pipeline.sources.needles import Needles
from data_pipeline.sources.niah import needle_texts
from data_pipeline.sources.pydocs import training_texts
from data_pipeline.tokenizer import Tokenizer, train_sentencepiece

_CONVERSATIONS = 1000
_PAIRS = [f"{pair:02}" for pair in range(100)]
_PLACED_DIGITS = (
    *(f"[{pair}" for pair in _PAIRS),
    *_PAIRS,
    *(f"{last}]" for last in (*_PAIRS, *"0123456789")),
)


def train_tokenizer(config: DataConfig, out_dir: Path | str | None = None) -> Tokenizer:
    """Train the corpus's tokenizer (data.tokenizer) and, given a folder, save it there.

    Raises DataError when the texts cannot fill the vocabulary.
    """
    tokenizer = train_sentencepiece(
        corpus_texts(config),
        config.tokenizer.vocab_size,
        config.tokenizer.model_type,
        (
            *(template_phrases(config) if config.tokenizer.phrases else ()),
            *(_PLACED_DIGITS if config.tokenizer.placed_digits else ()),
        ),
    )
    if out_dir is not None:
        tokenizer.save(out_dir)
    return tokenizer


def corpus_texts(config: DataConfig) -> Iterator[str]:
    """Needle words and documents, conversations in the protocol, and pydocs' training split."""
    rng = np.random.default_rng((config.seed, 0x70CE))  # its own stream, apart from the samples'
    words = list(Needles(config.niah).words.all)
    for _ in range(config.tokenizer.word_repeats):
        yield "".join(f" {word}" for word in rng.permutation(words))
    yield from needle_texts(config.niah, rng, config.tokenizer.needle_texts)
    yield from _conversations(config, rng)
    yield from training_texts(config.pydocs)


def template_phrases(config: DataConfig) -> tuple[str, ...]:
    """The fixed phrases of protocol and needles, longest first within a text."""
    needles = Needles(config.niah)
    asked = [needles.question(("\0",), several).partition("\0") for several in (False, True)]
    phrases = [
        protocol.ASK.strip(),
        protocol.RETRIEVE.strip(),
        protocol.USER_QUESTION.rstrip(),
        protocol.ANSWER.rstrip(),
        protocol.END_OF_RETRIEVE,
        f" {needles.opening}",
        *(before.rstrip() for before, _, _ in asked),
        asked[0][2],
    ]
    return tuple(dict.fromkeys(phrases))


def _conversations(config: DataConfig, rng: np.random.Generator) -> Iterator[str]:
    needles = Needles(config.niah)
    for group in needles.draw(rng, min(_CONVERSATIONS, config.niah.key_count // 8 or 1)):
        question = needles.question(group.keys, len(group.values) > 1)
        numbers = rng.integers(config.numbers.limit, size=len(group.values)).tolist()
        yield from _stretches(protocol.prompt_pieces(question))
        yield protocol.written_ids(numbers)
        yield from _stretches(protocol.memory_answer_pieces(question))
        yield from _stretches(protocol.answer_pieces(", ".join(group.values)))


def _stretches(pieces: Iterable[Piece]) -> Iterator[str]:
    for piece in pieces:
        if not piece.control:
            yield piece.text
