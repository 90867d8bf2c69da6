"""The texts of a corpus, and the tokenizer that is trained on them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np

from data_pipeline import protocol
from data_pipeline.schema import Piece
from data_pipeline.settings import DataConfig, TrainingCorpus
from data_pipeline.sources.niah import Needles
from data_pipeline.tokenizer import Tokenizer, load_tokenizer
from data_pipeline.tokenizer.sentencepiece import train_sentencepiece

_CONVERSATIONS = 1000
_PAIRS = [f"{pair:02}" for pair in range(100)]
_PLACED_DIGITS = (
    *(f"[{pair}" for pair in _PAIRS),
    *_PAIRS,
    *(f"{last}]" for last in (*_PAIRS, *"0123456789")),
)


def corpus_tokenizer(corpus: TrainingCorpus) -> Tokenizer:
    """The tokenizer of data.tokenizer: taken from its path, or trained on the corpus's sources.

    Raises DataError when the texts cannot fill the vocabulary.
    """
    config = corpus.data
    if config.tokenizer.path is not None:
        return load_tokenizer(config.tokenizer.path)
    return train_sentencepiece(
        corpus_texts(config, corpus.used_sources),
        config.tokenizer.vocab_size,
        (
            *(template_phrases(config) if config.tokenizer.phrases else ()),
            *(_PLACED_DIGITS if config.tokenizer.placed_digits else ()),
        ),
    )


def corpus_texts(config: DataConfig, sources: Collection[str]) -> Iterator[str]:
    """Texts of the sources, and conversations in the protocol."""
    rng = np.random.default_rng((config.seed, 0x70CE))  # its own stream, apart from the samples'
    for place, name in enumerate(config.sources):
        if name in sources:
            source, settings = config.source(name)
            yield from source.tokenizer_texts(settings, config.tokenizer, rng)
        if place == 0:  # their place matters: a tokenizer depends on the order of its texts
            yield from _conversations(config, rng)


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
    """The protocol with questions about needles, whatever the sources."""
    needles = Needles(config.niah)
    for group in needles.draw(rng, min(_CONVERSATIONS, config.niah.key_count // 8 or 1)):
        question = needles.question(group.keys, len(group.values) > 1)
        numbers = rng.integers(config.numbers.limit, size=len(group.values)).tolist()
        yield from _plain_texts(protocol.prompt_pieces(question))
        yield protocol.written_ids(numbers)
        yield from _plain_texts(protocol.memory_answer_pieces(question))
        yield from _plain_texts(protocol.answer_pieces(", ".join(group.values)))


def _plain_texts(pieces: Iterable[Piece]) -> Iterator[str]:
    for piece in pieces:
        if not piece.control:
            yield piece.text
