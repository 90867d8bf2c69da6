"""What a router is fitted on: documents, and questions whose documents are known or self-made."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from data_pipeline.clozes import Cloze, clozes
from data_pipeline.dataset import find_file, read_passages, read_questions
from data_pipeline.errors import DataError
from data_pipeline.schema import Document
from data_pipeline.scripts import count_words, join_words, split_words
from data_pipeline.sources.dataset_tables import holds_answer, shown_text
from data_pipeline.sources.pydocs import PydocsConfig, PydocsSource, Split, split_of
from data_pipeline.splitting import DOCUMENT_TOKENS, document_length, sentences, split_text
from data_pipeline.tokenizer import Tokenizer
from msa_train.memory.bank.corpus import CorpusFile, pydocs

PYDOCS = "pydocs"  # in place of a corpus
# In place of a split, made from the documents themselves: questions for a router, and questions
# with answers.
SELF_MADE, CLOZES = "self-made", "clozes"
SPARE = 16  # documents that are ranked beyond those to keep, because some hold the answer
_WORDS = 5  # of a sentence that can be a question, at least
_DROPPED = 8  # one word in so many
_CHARACTERS = 12  # of a token, at most, in text that is worth reading


@dataclass(frozen=True)
class Pair:
    """A question, places of the documents that answer it (all needed, or any_of them), and answers,
    where they are known."""

    question: str
    documents: tuple[int, ...]
    answers: tuple[str, ...] = ()
    any_of: bool = False


@dataclass(frozen=True)
class RouterExamples:
    """Documents, numbered from 0 in their order, and pairs about them."""

    name: str
    documents: tuple[Document, ...]
    pairs: tuple[Pair, ...] = ()


def read_examples(
    source: str, tokenizer: Tokenizer, split: str | None = None, limit: int | None = None,
    seed: int = 0,
) -> RouterExamples:  # fmt: skip
    """Of a dataset folder, a .jsonl[.gz] file, or the word pydocs.

    split: of a dataset's questions, "self-made" or "clozes" for pairs made without labels, None for
    documents alone. Of pydocs: "train" or "held_out", and no pairs are made of documents that are
    held out. limit: so many documents at most, drawn by seed; questions about others are left out.
    Raises DataError for what is not there, and where a split has no questions.
    """
    given = [(d.id or str(d.number), d.title, d.text) for d in _read(source, tokenizer)]
    if not given:
        raise DataError(f"{source} has no documents")
    known = {id for id, _, _ in given}
    if limit is not None and limit < len(given):
        kept = sorted(random.Random(seed).sample(range(len(given)), limit))
        given = [given[place] for place in kept]
    documents = tuple(
        Document(place, _cut(tokenizer, text), id, title)
        for place, (id, title, text) in enumerate(given)
    )
    if split is None:
        return RouterExamples(source, documents)
    if split == SELF_MADE:
        pairs = tuple(self_made_pairs(_learned_from(source, documents), seed))
    elif split == CLOZES:
        pairs = tuple(cloze_pairs(_learned_from(source, documents), seed))
    elif source == PYDOCS:
        pairs = tuple(_pydocs_pairs(split, documents, tokenizer))
    else:
        pairs = tuple(_labelled(source, split, documents, known))
    if not pairs:
        raise DataError(
            f"{source} has no questions of split {split} about these documents: give another "
            f"split, or documents of whole sentences"
        )
    return RouterExamples(source, documents, pairs)


def wrong_of(ranking: Sequence[int], pair: Pair, documents: Sequence[Document]) -> list[int]:
    """Of the ranked documents those that do not answer, as far as can be told."""
    return [
        place
        for place in ranking
        if place not in pair.documents and not holds_answer(documents[place].text, pair.answers)
    ]


def self_made_pairs(documents: Sequence[Document], seed: int = 0) -> Iterator[Pair]:
    """Without labels: the title of a document, one of its sentences as a question about it, and a
    question made of it (clozes.py), whose own words ("How do I") say nothing about the document.

    A sentence (inverse cloze, Lee et al. 2019) has its halves exchanged and one word in eight
    dropped: word order and single words are not what a question shares with its answer. Titles that
    several documents have answer to all of them.
    """
    draw = random.Random(seed)
    titled: dict[str, list[int]] = {}
    for document in documents:
        if document.title.strip():
            titled.setdefault(document.title.strip(), []).append(document.number)
        body = document.text.removeprefix(document.title)
        long_enough = [part for part in sentences(body) if count_words(part) >= _WORDS]
        if long_enough:
            yield Pair(_disturbed(draw.choice(long_enough), draw), (document.number,))
        if (cloze := next(_clozes(document, draw), None)) is not None:
            yield Pair(cloze.question, (document.number,))
    for title, places in titled.items():
        yield Pair(title, tuple(places))


def cloze_pairs(documents: Sequence[Document], seed: int = 0) -> Iterator[Pair]:
    """Without labels: questions with an answer that stands in their document (clozes.py).

    First one of each document that has any, then the second of each, and so on.
    """
    draw = random.Random(seed)
    left = [(document.number, _clozes(document, draw)) for document in documents]
    while left:
        made = [(place, more, next(more, None)) for place, more in left]
        left = [(place, more) for place, more, cloze in made if cloze is not None]
        for place, _, cloze in made:
            if cloze is not None:
                yield Pair(cloze.question, (place,), (cloze.answer,))


def _clozes(document: Document, draw: random.Random) -> Iterator[Cloze]:
    return clozes(document.text.removeprefix(f"{document.title}\n"), draw, document.title)


def _disturbed(sentence: str, draw: random.Random) -> str:
    words = split_words(sentence)
    middle = len(words) // 2
    exchanged = words[middle:] + words[:middle]
    return join_words([word for word in exchanged if draw.randrange(_DROPPED)])


def _learned_from(source: str, documents: Sequence[Document]) -> Sequence[Document]:
    """Those about which a model may be asked while it learns."""
    if source != PYDOCS:
        return documents
    return [each for each in documents if split_of(each.id, PydocsConfig()) == "train"]


def _pydocs_pairs(
    split: str, documents: Sequence[Document], tokenizer: Tokenizer
) -> Iterator[Pair]:
    if split not in get_args(Split):
        raise DataError(
            f"{PYDOCS} has no split {split}: give {', '.join(get_args(Split))} or {SELF_MADE}"
        )
    place = {document.id: document.number for document in documents}
    for entry in PydocsSource(PydocsConfig(), tokenizer).entries:
        if entry.name in place and split_of(entry.name, PydocsConfig()) == split:
            yield from (Pair(asked, (place[entry.name],)) for asked in entry.questions)


def _read(source: str, tokenizer: Tokenizer) -> Iterator[Document]:
    path = Path(source)
    if source == PYDOCS:
        return pydocs(tokenizer)[0]
    if path.is_dir():
        passages = read_passages(find_file(path, "corpus"))
        return (
            Document(place, shown_text(each.title, each.text), each.id, each.title)
            for place, each in enumerate(passages)
        )
    return CorpusFile(path).documents()


def _labelled(
    source: str, split: str, documents: Sequence[Document], known: set[str]
) -> Iterator[Pair]:
    """known: ids of the whole corpus, of which `documents` may be a part."""
    if not Path(source).is_dir():
        raise DataError(f"{source} has no questions: give a dataset folder, or split {SELF_MADE}")
    place = {document.id: place for place, document in enumerate(documents)}
    for where, each in read_questions(find_file(Path(source), f"questions.{split}")):
        there = tuple(place[id] for id in each.positives if id in place)
        if known.isdisjoint(each.positives):
            raise DataError(f"{where}: none of {list(each.positives)} is in {source}")
        if there:
            yield Pair(each.question, there, each.answers, each.any_of)


def _cut(tokenizer: Tokenizer, text: str) -> str:
    beginning = text[: _CHARACTERS * DOCUMENT_TOKENS]
    if len(beginning.encode()) <= DOCUMENT_TOKENS:  # a token has at least one byte
        return beginning
    parts = split_text(beginning, DOCUMENT_TOKENS, lambda part: document_length(tokenizer, part))
    return parts[0] if parts else ""  # nothing but space
