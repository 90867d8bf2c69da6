"""The texts of a corpus, and the tokenizer that is trained on them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np

from data_pipeline import protocol
from data_pipeline.dataset import find_file, read_passages, read_questions
from data_pipeline.mixture import TrainingCorpus
from data_pipeline.schema import Piece
from data_pipeline.settings import DataConfig
from data_pipeline.sources.dataset_config import DatasetConfig
from data_pipeline.sources.dataset_tables import shown_text
from data_pipeline.sources.needles import Needles
from data_pipeline.sources.niah import needle_texts
from data_pipeline.sources.pydocs import training_texts
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_sentencepiece import train_sentencepiece

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
        return Tokenizer.load(config.tokenizer.path)
    return train_sentencepiece(
        corpus_texts(config, used_sources(corpus)),
        config.tokenizer.vocab_size,
        config.tokenizer.model_type,
        (
            *(template_phrases(config) if config.tokenizer.phrases else ()),
            *(_PLACED_DIGITS if config.tokenizer.placed_digits else ()),
        ),
    )


def used_sources(corpus: TrainingCorpus) -> tuple[str, ...]:
    """Sources that some stage draws from."""
    weights = [corpus.source_weights(stage) for stage in range(len(corpus.stages))]
    return tuple(name for name in corpus.data.sources if any(w[name] > 0 for w in weights))


def corpus_texts(config: DataConfig, sources: Collection[str]) -> Iterator[str]:
    """Texts of the sources: needle words and documents, conversations in the protocol, training
    documents."""
    rng = np.random.default_rng((config.seed, 0x70CE))  # its own stream, apart from the samples'
    if "niah" in sources:
        words = list(Needles(config.niah).words.all)
        for _ in range(config.tokenizer.word_repeats):
            yield "".join(f" {word}" for word in rng.permutation(words))
        yield from needle_texts(config.niah, rng, config.tokenizer.needle_texts)
    yield from _conversations(config, rng)
    if "pydocs" in sources:
        yield from training_texts(config.pydocs)
    for name in sources:
        if name in config.datasets:
            yield from _dataset_texts(config.datasets[name], config.tokenizer.passages, rng)


def _dataset_texts(config: DatasetConfig, passages: int, rng: np.random.Generator) -> Iterator[str]:
    """So many passages under their titles, from all over the corpus, and as many questions."""
    corpus = read_passages(find_file(config.path, "corpus"))
    texts = [[shown_text(passage.title, passage.text) for passage in corpus]]
    if config.tasks.get("given"):
        questions = read_questions(find_file(config.path, f"questions.{config.split}"))
        texts.append([question.question for _, question in questions])
    for some in texts:
        yield from (some[place] for place in rng.permutation(len(some))[:passages].tolist())


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
