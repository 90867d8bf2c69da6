"""The text of tokens as they are written: whole characters, stop strings, control tokens."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence

from data_pipeline.protocol import CONTROL_TOKENS
from data_pipeline.tokenizer import Tokenizer

_DECODER = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Turns the tokens of one stage (ids, or an answer) into text, one at a time.

    text: its complete characters; nothing of what may become a control token that is spelled.
    ids: all that were written, in order; tokens: how many they are without the control token.
    control: the control token that ended it, if one did. stops:
    strings that end it; text ends before the first one. opening: where the text begins with it, no
    stop string is looked for in it.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), opening: str = ""):
        self.text, self.tokens = "", 0
        self.ids: list[int] = []
        self.control: str | None = None
        self.stopped = False
        self._tokenizer, self._stops, self._opening = tokenizer, tuple(stops), opening
        self._names = {tokenizer.control_ids(name): name for name in CONTROL_TOKENS}
        self._beginnings = {
            ids[:count] for ids in self._names for count in range(1, len(ids))
        }  # of control tokens that are spelled
        self._spelled: tuple[int, ...] = ()  # the last tokens, which may become one
        self._decoder = _DECODER("replace")  # holds back the bytes of an incomplete character
        self._handed_out = 0

    @property
    def ended(self) -> bool:
        """Whether a control token or a stop string was written."""
        return self.stopped or self.control is not None

    def append(self, token: int) -> None:
        self.ids.append(token)
        unread = (*self._spelled, token)
        ending = next((end for end in _ends(unread) if end in self._names), ())
        self.control = self._names.get(ending)
        held = ending or next((end for end in _ends(unread) if end in self._beginnings), ())
        self._spelled = () if ending else held
        self.tokens += not ending
        for known in unread[: len(unread) - len(held)]:
            self.text += self._decoder.decode(self._tokenizer.token_bytes(known))
        found = [at for stop in self._stops if (at := self.text.find(stop, self._begin())) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def new_text(self, ended: bool) -> str:
        """Text not handed out yet; until it has `ended`, without what may begin a stop string."""
        end = len(self.text) - (0 if ended else self._held())
        piece = self.text[self._handed_out : end]
        self._handed_out = max(self._handed_out, end)
        return piece

    def _begin(self) -> int:
        """Where the search for stop strings begins."""
        if self.text.startswith(self._opening):
            return len(self._opening)
        return len(self.text) if self._opening.startswith(self.text) else 0

    def _held(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        begin = 0 if self._opening.startswith(self.text) else self._begin()
        longest = max(map(len, self._stops), default=0)
        for count in range(min(longest - 1, len(self.text) - begin), 0, -1):
            if any(stop.startswith(self.text[-count:]) for stop in self._stops):
                return count
        return 0


def _ends(tokens: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The last tokens, as many as there are and fewer."""
    return (tokens[start:] for start in range(len(tokens)))
