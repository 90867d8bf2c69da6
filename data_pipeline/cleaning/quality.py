"""Rules that a passage and a question have to pass.

The measures are those of MassiveText (Rae et al. 2021, "Scaling Language Models: Methods, Analysis
& Insights from Training Gopher", appendix A.1): length and mean length of words, symbols per word,
share of letters, repeated lines and repeated n-grams. Its bounds are for web pages; where ours are
wider, it is because a passage of a question-answering corpus may be a single sentence.

Lengths are in words of `text.words`: a character of a script without spaces is a word, so Chinese
is measured rather than thrown away.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, fields

from data_pipeline.cleaning.text import normalise, repeated_words, words
from data_pipeline.dataset import Passage, Question
from data_pipeline.errors import DataError
from data_pipeline.scripts import spaced_words, spaceless

REPEATED_GRAM = 10
_COUNTS = ("min_words", "max_words", "max_question_words", "max_answer_words")
_SHARES = ("min_letters", "max_repeated_lines", "max_repeated_words")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_UNSAID = {"yes", "no"}  # answers that no passage spells out


@dataclass(frozen=True)
class QualityRules:
    """Bounds; a value on the bound passes.

    min_words, max_words: length of a passage.
    min_letters: share of its characters other than spaces that are letters (or marks on them).
    max_repeated_lines: share of its lines that repeat an earlier one.
    max_repeated_words: share of its words in 10-grams that occurred earlier.
    min_word_length, max_word_length: mean length of the words between spaces; not applied to a
        text most of which is in a script without spaces.
    max_symbols: number signs and ellipses per word.
    max_question_words, max_answer_words: length of a question, of each of its answers.
    answer_in_positive: an answer has to stand in one of the positives (text or title, normalised);
        "yes", "no" and questions without answers pass.
    """

    min_words: int = 5
    max_words: int = 100_000
    min_letters: float = 0.5
    max_repeated_lines: float = 0.3
    max_repeated_words: float = 0.3
    min_word_length: float = 2.0
    max_word_length: float = 12.0
    max_symbols: float = 0.1
    max_question_words: int = 200
    max_answer_words: int = 200
    answer_in_positive: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _COUNTS and value < 1:
                raise DataError(f"{field.name} is {value}: give 1 or more words")
            if field.name in _SHARES and not 0 <= value <= 1:
                raise DataError(f"{field.name} is {value}: give a share from 0 to 1")
        if not self.max_symbols >= 0:
            raise DataError(f"max_symbols is {self.max_symbols}: give 0 or more symbols a word")
        for low, high in (("min_words", "max_words"), ("min_word_length", "max_word_length")):
            if getattr(self, low) > getattr(self, high):
                raise DataError(
                    f"{low} is {getattr(self, low)} and {high} {getattr(self, high)}: no passage "
                    "can pass both"
                )


def passage_fault(passage: Passage, tokens: list[str], rules: QualityRules) -> str | None:
    """The first rule that a passage breaks. tokens: `words` of its text."""
    text = passage.text
    if broken_text(text) or broken_text(passage.title):
        return "broken_text"
    if len(tokens) < rules.min_words:
        return "too_short"
    if len(tokens) > rules.max_words:
        return "too_long"
    if letters(text) < rules.min_letters:
        return "few_letters"
    if not rules.min_word_length <= _word_length(text, rules) <= rules.max_word_length:
        return "word_length"
    if symbols(text) > rules.max_symbols * len(tokens):
        return "symbols"
    if repeated_lines(text) > rules.max_repeated_lines:
        return "repeated_lines"
    if repeated_words(tokens, REPEATED_GRAM) > rules.max_repeated_words * len(tokens):
        return "repeated_words"
    return None


def question_fault(question: Question, rules: QualityRules) -> str | None:
    """The first rule that a question breaks, its positives aside."""
    if any(map(broken_text, (question.question, *question.answers))):
        return "broken_text"
    length = len(words(question.question))
    if not length:
        return "empty_question"
    if length > rules.max_question_words:
        return "long_question"
    if any(len(words(answer)) > rules.max_answer_words for answer in question.answers):
        return "long_answer"
    return None


def broken_text(text: str) -> bool:
    """Whether there is half a surrogate pair: such a text cannot be written as UTF-8."""
    return bool(_SURROGATE.search(text))


def letters(text: str) -> float:
    """Share of letters, and marks on them, among the characters that are no space."""
    kinds = [unicodedata.category(character)[0] for character in text if not character.isspace()]
    return sum(kind in "LM" for kind in kinds) / max(1, len(kinds))


def symbols(text: str) -> int:
    """Number signs and ellipses of a text."""
    return text.count("#") + text.count("…") + text.count("...")


def repeated_lines(text: str) -> float:
    """Share of the lines with text that repeat an earlier line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return 1 - len(set(lines)) / max(1, len(lines))


class AnswersInPositives:
    """Which questions have an answer that stands in one of their positives, as passages pass by.

    questions: numbers are places in it.
    """

    def __init__(self, questions: Iterable[Question]):
        self._asked: dict[str, list[int]] = {}
        self._answers: list[set[str]] = []
        self.found: set[int] = set()
        for number, question in enumerate(questions):
            self._answers.append({normalise(answer) for answer in question.answers} - {""})
            if not self._answers[-1] or self._answers[-1] & _UNSAID:
                self.found.add(number)
            for name in question.positives:
                self._asked.setdefault(name, []).append(number)

    def see(self, passage: Passage) -> None:
        waiting = [n for n in self._asked.get(passage.id, ()) if n not in self.found]
        if waiting:
            text = normalise(f"{passage.title}\n{passage.text}")
            self.found.update(n for n in waiting if any(a in text for a in self._answers[n]))


def _word_length(text: str, rules: QualityRules) -> float:
    """Mean length; one that passes for a script without spaces, which its characters tell."""
    spaced = spaced_words(text)
    if not spaced or 2 * spaceless(text) > sum(map(len, text.split())):
        return rules.min_word_length
    return sum(map(len, spaced)) / len(spaced)
