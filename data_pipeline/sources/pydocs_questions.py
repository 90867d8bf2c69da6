"""Questions about documented Python objects, made from the text of the documentation alone.

Every question is checked: it never holds the last part of the answer's name, never repeats the
first sentence (nor a long run of its words), and the words it takes from the document stand
together in no other document.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from data_pipeline.sources.stdlib import Docstring

_WORD = re.compile(r"[A-Za-z0-9_]+")
_LONGEST_RUN = 6  # words in a row that a question may share with the first sentence
_FEWEST_WORDS = 2  # content words a question must share with its document
_FUNCTION_WORDS = """
a about after all also an and any are as at be been before but by can do does each either
else for from given has have here how if in instead into is it its may more must no not of on
only or other otherwise same see should so some such than that the their them then there these
they this to use used uses using value was when where which while will with without you your
arg args argument arguments called call class default false function method module none object
objects optional parameter parameters python raise raises return returned returns self true
type one two too etc don won isn doesn like whether
"""
_STOPWORDS = frozenset(_FUNCTION_WORDS.split())
# After one of these the verb means something else ("set up"), or is not alone.
_PARTICLES = frozenset({"up", "out", "off", "down", "on", "and", "or", "to", "by"})
# A first sentence that begins with one of these verbs becomes a "how do I" question.
_PURPOSES = {
    "add": "put in", "append": "put at the end", "calculate": "work out", "check": "find out",
    "close": "shut", "compute": "work out", "convert": "turn", "copy": "duplicate",
    "create": "make", "delete": "get rid of", "display": "show", "execute": "carry out",
    "find": "look up", "format": "lay out", "get": "obtain", "insert": "put in", "load": "read in",
    "make": "build", "move": "shift", "open": "access", "parse": "take apart", "print": "show",
    "read": "take in", "register": "announce", "remove": "get rid of", "retrieve": "obtain",
    "return": "get", "run": "carry out", "send": "transmit", "set": "choose", "start": "begin",
    "stop": "end", "test": "find out", "update": "bring up to date", "wait": "pause",
    "write": "put out",
}  # fmt: skip
_SYNONYMS = {
    "whether": "if", "specified": "given", "given": "specified", "directory": "folder",
    "string": "text", "element": "item", "elements": "items", "current": "present",
    "number": "count", "argument": "parameter", "arguments": "parameters", "create": "make",
    "contains": "holds", "containing": "holding", "remove": "drop", "entire": "whole",
}  # fmt: skip


class QuestionWriter:
    """Writes questions about `documents`, unambiguous among their texts."""

    def __init__(self, documents: Sequence[Docstring], texts: Sequence[str]):
        """texts: the documents as they stand in a bank (perhaps cut)."""
        self._documents = documents
        # Without the line of name and signature.
        self._bodies = [text.partition("\n")[2] for text in texts]
        self._words = [frozenset(_content_words(text)) for text in texts]
        self._holders: dict[str, set[int]] = defaultdict(set)
        for i, words in enumerate(self._words):
            for word in words:
                self._holders[word].add(i)
        self._all = set(range(len(documents)))
        self._contents: dict[str, set[int]] = defaultdict(set)
        for i in range(len(documents)):
            self._contents[self._container(i)].add(i)

    def questions(self, i: int, most: int) -> list[str]:
        """At most `most` different questions about document i; the same ones every time."""
        rng = random.Random(self._documents[i].name)
        templates: list[Callable[[int, random.Random], Iterator[str]]] = [
            self._by_purpose, self._by_later_sentence, self._by_keywords, self._by_parameters,
        ]  # fmt: skip
        found: list[str] = []
        for template in templates:
            good = (q for q in template(i, rng) if q not in found and self.is_good(i, q))
            found += islice(good, 1)
        return found[:most]

    def is_good(self, i: int, question: str) -> bool:
        """Whether the question hides the answer's name and points at document i alone."""
        if self._documents[i].last_name.lower() in question.lower():
            return False
        first = _words(_first_sentence(self._documents[i].text))
        run = min(len(first), _LONGEST_RUN + 1)
        if _runs(first, run) & _runs(_words(question), run):
            return False
        shared = self._words[i] & set(_content_words(question))
        if len(shared) < _FEWEST_WORDS:
            return False
        holders = sorted((self._holders[word] for word in shared), key=len)
        return set.intersection(*holders, self._candidates(i, question)) == {i}

    def _candidates(self, i: int, question: str) -> set[int]:
        """Documents the question may be about: those in the container that it names, or all."""
        container = self._container(i)
        if f" {container}?" in question or f" in {container} " in question:
            return self._contents[container]
        return self._all

    def _by_purpose(self, i: int, rng: random.Random) -> Iterator[str]:
        """`Return the number of threads.` -> `How do I get the count of threads in threading?`"""
        sentence = _first_sentence(self._bodies[i])
        verb, _, rest = sentence.rstrip(".").partition(" ")
        wanted = _PURPOSES.get(verb.lower()) or _PURPOSES.get(verb.lower().removesuffix("s"))
        words = re.split(r"[,;:]\s|\s[(]| -+ ", rest)[0].split()
        if not wanted or len(words) < 2 or words[0] in _PARTICLES or words[-1] in _STOPWORDS:
            return
        if wanted == "find out" and words[0] not in ("if", "whether", "that"):
            return
        spoken = " ".join(_SYNONYMS.get(word, word) for word in words)
        yield f"How do I {wanted} {spoken}?"
        yield f"How do I {wanted} {spoken} with {self._container(i)}?"

    def _by_later_sentence(self, i: int, rng: random.Random) -> Iterator[str]:
        sentences = _sentences(self._bodies[i])[1:]
        rng.shuffle(sentences)
        for sentence in sentences:
            yield f"Which {self._what(i)} does the following describe? {sentence}"
            yield f"Which {self._what(i)} in {self._container(i)} is meant? {sentence}"

    def _by_keywords(self, i: int, rng: random.Random) -> Iterator[str]:
        """The rarest words of the first sentences, in another order."""
        own = set(_content_words(self._documents[i].name))
        prose = " ".join(_sentences(self._bodies[i])[:4])
        body = [word for word in dict.fromkeys(_content_words(prose)) if word not in own]
        rare = sorted(body, key=lambda word: (len(self._holders[word]), word))[:5]
        for count in range(min(4, len(rare)), len(rare) + 1):
            words = rare[:count]
            rng.shuffle(words)
            listed = _listed(words)
            yield f"Which {self._what(i)} has to do with {listed}?"
            yield f"Which {self._what(i)} in {self._container(i)} has to do with {listed}?"

    def _by_parameters(self, i: int, rng: random.Random) -> Iterator[str]:
        names = list(self._documents[i].parameters)
        if len(names) < 2:
            return
        listed = _listed(names[:5])
        yield f"Which {self._what(i)} takes the parameters {listed}?"
        yield f"Which {self._what(i)} in {self._container(i)} takes the parameters {listed}?"

    def _what(self, i: int) -> str:
        return f"Python {self._documents[i].kind}"

    def _container(self, i: int) -> str:
        """`json.JSONDecoder` of a method, `json` of a function, `xml` of a submodule."""
        return self._documents[i].name.rpartition(".")[0] or "the standard library"


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _content_words(text: str) -> list[str]:
    return [
        word
        for word in _words(text)
        if len(word) > 2 and word not in _STOPWORDS and not word.isdigit()
    ]


def _sentences(text: str) -> list[str]:
    """Plain sentences of a docstring: examples, lists and headings are left out."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        joined = " ".join(paragraph.split())
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", joined):
            plain = ">>>" not in sentence and "::" not in sentence and sentence.endswith(".")
            # The first is kept whatever it is: it is never quoted.
            if not found or (plain and 6 <= len(sentence.split()) <= 30):
                found.append(sentence)
    return found


def _first_sentence(text: str) -> str:
    paragraph = " ".join(re.split(r"\n\s*\n", text.strip())[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph)[0]


def _runs(words: list[str], length: int) -> set[tuple[str, ...]]:
    """All runs of `length` words in a row; of a shorter text, the whole of it."""
    length = min(length, len(words))
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)
