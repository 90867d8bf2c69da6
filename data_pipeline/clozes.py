"""Questions with answers, made of a text alone: a span of it is the answer, its sentence asks.

After Taylor 1953 (cloze) and Lewis et al. 2019 (question answering without labels): a date, number,
name or noun phrase is taken out of a sentence, and what is left of the clause becomes a question.
Documentation of code is asked for defaults, parameters and purposes besides.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from data_pipeline.splitting import sentences

_GAPS = 0.3  # share of clozes with a gap; the others begin with a question word
_DROPPED = 8  # one word in so many is dropped from a question without a gap
_SIDE = 12  # words of a clause on either side of the answer, at most
_SENTENCE = range(6, 41)  # words
_CLAUSE = 5  # words that ask, at least; of a shorter clause the sentence around it asks too
_ANSWER = 6  # words, at most
_PURPOSE = 20  # words of a first sentence that says what something does, at most

_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DATE = rf"(?:\d{{1,2}} )?{_MONTH}(?: \d{{1,2}},)? \d{{4}}|\b(?:1\d|20)\d\ds?\b"
_UNIT = (
    "(?:percent|million|billion|thousand|hundred|"
    "years?|days?|hours?|minutes?|miles?|km|metres?|feet)"
)
_NUMBER = rf"\b\d[\d,.]*(?<=\d)(?: {_UNIT})*\b%?"
_CAPITAL = r"[A-Z][\w'’.-]*\w"
_NAME = rf"\b{_CAPITAL}(?:(?: (?:of|the|de|van|von|and))* {_CAPITAL})*"
_QUOTED = r"(?<=[\"“])[^\"“”]{2,60}(?=[\"”])"
_PHRASE = (
    r"\b(?:a|an|the) (?:[a-z-]+ ){0,2}[a-z-]{4,}"
    r"(?=[,.;:)]| (?:of|in|on|by|for|with|from|and|that|which|to)\b)"
)
_KINDS = (
    ("date", re.compile(_DATE)),
    ("number", re.compile(_NUMBER)),
    ("quoted", re.compile(_QUOTED)),
    ("name", re.compile(_NAME)),
    ("phrase", re.compile(_PHRASE)),
)
_ASKING = {
    "date": ("When", "In what year", "What year"),
    "number": ("How many", "How much", "What number of"),
    "quoted": ("What",),
    "name": ("Who", "What", "Which", "Where"),
    "phrase": ("What",),
}
_PRONOUN = re.compile(r"^(?:He|She|It|They|This|These)\b")
# `class a.b(c, d=1)` or `a.b(c) -> d`, as documentation begins.
_SIGNATURE = re.compile(r"(?:class )?(?P<name>[A-Za-z_][\w.]*)\((?P<parameters>.*)\)(?: -> .*)?")
_PARAMETER = re.compile(r"(?P<name>\*{0,2}\w+)(?:\s*:[^=]*)?(?:\s*=\s*(?P<default>.+))?")


@dataclass(frozen=True)
class Cloze:
    """A question and the answer that its text holds, word for word."""

    question: str
    answer: str


def clozes(text: str, draw: random.Random, title: str = "") -> Iterator[Cloze]:
    """One of each sentence that has something to ask for, in random order, and of a signature.

    title: stands for a pronoun at the beginning of a sentence, which would not tell what it means.
    """
    found = list(_of_signature(text))
    candidates = [part for part in map(str.strip, sentences(text)) if _plain(part)]
    draw.shuffle(found)
    draw.shuffle(candidates)
    made = (_of_sentence(sentence, title, draw) for sentence in candidates)
    yield from found
    yield from (cloze for cloze in made if cloze is not None)


def _plain(sentence: str) -> bool:
    return len(sentence.split()) in _SENTENCE and ">>>" not in sentence and "\n" not in sentence


def _of_sentence(sentence: str, title: str, draw: random.Random) -> Cloze | None:
    spans = list(_spans(sentence))
    if not spans:
        return None
    kind, start, end = draw.choice(spans)
    left, right = _clause(sentence[:start], sentence[end:])
    if title and not re.search(r"[,;:(]", sentence[:start]):
        left = _PRONOUN.sub(title, left)
    if draw.random() < _GAPS:
        question = f"{left} ___ {right}".strip()
    else:
        halves = [left[:1].lower() + left[1:], right]
        if draw.random() < 0.5:
            halves.reverse()
        kept = " ".join(w for w in " ".join(halves).split() if draw.randrange(_DROPPED))
        question = f"{draw.choice(_ASKING[kind])} {kept}?"
    if len(question.split()) < _CLAUSE:
        return None
    return Cloze(question, sentence[start:end])


def _clause(left: str, right: str) -> tuple[str, str]:
    """What stands on both sides of a span, as far as the clause goes, if that says enough."""
    left, right = left.strip(), right.strip().rstrip(".!?")
    before = re.split(r"[,;:(]\s", left)[-1].split()[-_SIDE:]
    after = re.split(r"[;:)]|,\s", right)[0].split()[:_SIDE]
    if len(before) + len(after) < _CLAUSE:
        before, after = left.split()[-_SIDE:], right.split()[:_SIDE]
    return " ".join(before), " ".join(after)


def _spans(sentence: str) -> Iterator[tuple[str, int, int]]:
    """(kind, start, end) of what a question can ask for, none inside another."""
    taken: list[tuple[int, int]] = []
    for kind, pattern in _KINDS:
        for match in pattern.finditer(sentence):
            start, end = match.span()
            words = len(match.group().split())
            end -= len(match.group()) - len(re.sub(r"['’]s$|\.$", "", match.group()))
            opens = kind == "name" and start == 0 and words == 1  # capital by its place alone
            inside = any(start < other_end and other < end for other, other_end in taken)
            if opens or inside or words > _ANSWER or end - start < 2:
                continue
            taken.append((start, end))
            yield kind, start, end


def _of_signature(text: str) -> Iterator[Cloze]:
    """Of `name(a, b=1)` in the first line, and of the sentence after it."""
    first, _, body = text.partition("\n")
    match = _SIGNATURE.fullmatch(first.strip())
    if match is None:
        return
    name = match["name"]
    parameters = [p for part in _split_parameters(match["parameters"]) if (p := _parameter(part))]
    names = [each for each, _ in parameters]
    if names:
        yield Cloze(f"Which parameters does {name} take?", ", ".join(names))
    for parameter, default in parameters:
        if default is not None:
            yield Cloze(f"What is the default of {parameter} in {name}?", default)
    purpose = next(iter(sentences(" ".join(body.split("\n\n")[0].split()))), "").strip()
    if 2 <= len(purpose.split()) <= _PURPOSE and purpose.endswith("."):
        yield Cloze(f"What does {name} do?", purpose)


def _parameter(text: str) -> tuple[str, str | None] | None:
    match = _PARAMETER.fullmatch(text.strip())
    return None if match is None or match["name"] in ("self", "cls") else match.group(1, 2)


def _split_parameters(text: str) -> list[str]:
    """At commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]
