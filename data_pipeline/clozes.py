"""Questions with answers, made of a text alone: a span of it is the answer, its sentence asks.

After Taylor 1953 (cloze) and Lewis et al. 2019 (question answering without labels): a date, number,
name or noun phrase is taken out of a sentence, and what is left of the clause becomes a question:
one that a person could ask where its auxiliary can move to the front, else its words, disturbed.
Documentation of code is asked for defaults, parameters and purposes besides, and what serves a
purpose.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from data_pipeline.splitting import sentences

_GAPS = 0.2  # share of clozes with a gap; the others begin with a question word
_DROPPED = 8  # one word in so many is dropped from a question that is no sentence
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
_AUXILIARY = re.compile(
    r"(?P<subject>(?!(?i:although|while|when|where|which|who|that|if|because|since|as|and|but|or)\b)"
    r"(?:\S+ ){0,5}\S+) "
    r"(?P<verb>is|are|was|were|has|have|had|can|could|will|would|may|might|must|should|does|did)\b"
    r"(?P<rest>.*)"
)
_OPENER = re.compile(r"(?:The|An?|In|On|At|By|His|Her|Its|Their|Most|Some|Many|All)\b")
_PRONOUN = re.compile(r"^(?:He|She|It|They|This|These)\b")
# `class a.b(c, d=1)` or `a.b(c) -> d`, as documentation begins.
_SIGNATURE = re.compile(r"(?:class )?(?P<name>[A-Za-z_][\w.]*)\((?P<parameters>.*)\)(?: -> .*)?")
# `Return the size of x.`, `Creates a box and opens it.`
_PURPOSE_OF = re.compile(
    r"(?!(?:This|These|Like|Same|If|For|With|As|At|In|On|See|Is|Are|Was|Has|Does|Note|When|Whether)\b)"
    r"(?P<verb>[A-Z][a-z]+)(?P<rest> (?:an?|the|all|any|each|every|this|True|if|whether)\b.*)\."
)
_PARAMETER = re.compile(r"(?P<name>\*{0,2}\w+)(?:\s*:[^=]*)?(?:\s*=\s*(?P<default>.+))?")

# `The code of the harbour is 4711`, `One of its words is: mild`: what something is.
_SUBJECT = (
    r"(?!(?:He|She|It|They|This|These|Those|That|There|Here|You|We|If|When|While|What|Note|As|For|In|On|At)\b)"
    r"(?P<subject>[A-Z][^\s,;:()]*(?: [^\s,;:()]+){0,13}?)"
)
_IS = re.compile(
    rf"{_SUBJECT} (?P<verb>is|are|was|were)(?:: \S| (?:an?|the) |(?= [\d\"“]| [A-Z][a-z])).*"
)
_WAS_IN = re.compile(
    rf"{_SUBJECT} (?P<verb>was|were)(?P<rest>(?: [^\s,;:()]+){{1,9}}?) "
    rf"(?:in|on|since) (?:{_DATE})\b.*"
)
_JOINED = re.compile(r"\b(?:that|which|who|whose|where|and|but|or|if|when|because)\b")


@dataclass(frozen=True)
class Cloze:
    """A question and the answer that its text holds, word for word."""

    question: str
    answer: str


def clozes(text: str, draw: random.Random, title: str = "") -> Iterator[Cloze]:
    """One of each sentence that has something to ask for, in random order, and of a signature.

    title: stands for a pronoun at the beginning of a sentence, which would not tell what it means.
    """
    found = list(_of_signature(text, draw))
    candidates = [part for part in map(str.strip, sentences(text)) if _plain(part)]
    draw.shuffle(found)
    draw.shuffle(candidates)
    made = (_of_sentence(sentence, title, draw) for sentence in candidates)
    yield from found
    yield from (cloze for cloze in made if cloze is not None)


def plain_questions(text: str, title: str = "") -> Iterator[str]:
    """Whole questions for a person to ask, whose answers stand in the text: the same every time.

    What serves the purpose that a signature's first sentence tells, or what its name does; then
    when something was, or what it is, of every sentence that says so in a plain way; last the
    title.
    """
    documented = [cloze.question for cloze in _of_purpose(text, random.Random(0))]
    yield from reversed(documented)  # a purpose without the name first
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in map(str.strip, sentences(" ".join(paragraph.split()))):
            if _plain(sentence) and (question := _plain_question(sentence)):
                yield question
    if title.strip():
        yield f"What is said about “{title.strip()}”?"


def _plain_question(sentence: str) -> str | None:
    for word, pattern in (("When", _WAS_IN), ("What", _IS)):
        match = pattern.fullmatch(sentence)
        if match and not _JOINED.search(match["subject"]):
            rest = match["rest"] if word == "When" else ""
            subject = re.sub(r"^One\b", "one", _lowered(match["subject"]))
            return f"{word} {match['verb']} {subject}{rest}?"
    return None


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
    question = _asked(kind, left, right, draw)
    if len(question.split()) < _CLAUSE:
        return None
    return Cloze(question, sentence[start:end])


def _asked(kind: str, left: str, right: str, draw: random.Random) -> str:
    """For what stands between two halves of a clause."""
    if draw.random() < _GAPS:
        return f"{left} ___ {right}".strip()
    word, lowered = draw.choice(_ASKING[kind]), _lowered(left)
    if not left:
        return f"{word} {right}?"
    if moved := _AUXILIARY.fullmatch(lowered):
        rest = moved["rest"]
        if word in ("When", "In what year"):  # which ask for the preposition too
            rest = re.sub(r" (?:in|on|at|since|from)$", "", rest)
        return " ".join(f"{word} {moved['verb']} {moved['subject']}{rest} {right}".split()) + "?"
    halves = [lowered, right]
    if draw.random() < 0.5:
        halves.reverse()
    kept = " ".join(w for w in " ".join(halves).split() if draw.randrange(_DROPPED))
    return f"{word} {kept}?"


def _lowered(left: str) -> str:
    """Without the capital of a sentence's first word, unless it may be a name's."""
    return left[:1].lower() + left[1:] if _OPENER.match(left) else left


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


def _of_signature(text: str, draw: random.Random) -> Iterator[Cloze]:
    """Of `name(a, b=1)` in the first line, and of the sentence after it: one of each kind."""
    match = _SIGNATURE.fullmatch(text.partition("\n")[0].strip())
    if match is None:
        return
    name = match["name"]
    parameters = [p for part in _split_parameters(match["parameters"]) if (p := _parameter(part))]
    names = [each for each, _ in parameters]
    if names:
        yield Cloze(f"Which parameters does {name} take?", ", ".join(names))
    if defaults := [pair for pair in parameters if pair[1] is not None]:
        parameter, default = draw.choice(defaults)
        yield Cloze(f"What is the default of {parameter} in {name}?", default)
    yield from _of_purpose(text, draw)


def _of_purpose(text: str, draw: random.Random) -> Iterator[Cloze]:
    """Of the sentence after a signature: what that does, and what does that."""
    first, _, body = text.partition("\n")
    match = _SIGNATURE.fullmatch(first.strip())
    if match is None:
        return
    name = match["name"]
    purpose = next(iter(sentences(" ".join(body.split("\n\n")[0].split()))), "").strip()
    if 2 <= len(purpose.split()) <= _PURPOSE and purpose.endswith("."):
        yield Cloze(f"What does {name} do?", purpose)
        what = "class" if first.lstrip().startswith("class ") else "function"
        if wanted := _wanted(purpose, what):
            yield Cloze(draw.choice(wanted), name)


def _wanted(purpose: str, what: str) -> tuple[str, ...]:
    """How somebody asks who does not know the name of what serves a purpose."""
    match = _PURPOSE_OF.fullmatch(purpose)
    if match is None:
        return ()
    base, third = _forms(match["verb"].lower())
    return f"How do I {base}{match['rest']}?", f"Which {what} {third}{match['rest']}?"


def _forms(verb: str) -> tuple[str, str]:
    """create, creates: of a verb given as either."""
    if re.search(r"[^su]s$", verb):  # "creates"; not "process", "focus"
        base = re.sub(r"(?<!cach)(?<=ch|sh|ss|zz)e$|(?<=[xo])e$", "", verb[:-1])  # not "cach"
        return re.sub(r"(?<=\w\w)ie$", "y", base), verb
    if re.search(r"[^aeiou]y$", verb):
        return verb, verb[:-1] + "ies"
    return verb, verb + ("es" if re.search(r"(?:ch|sh|s|x|z|o)$", verb) else "s")


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
