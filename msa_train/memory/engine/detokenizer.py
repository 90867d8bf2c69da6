"""Text as it is written, token by token: whole characters, stop strings, control tokens."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from data_pipeline.protocol import CONTROL_TOKENS
from data_pipeline.tokenizer import Tokenizer

_DECODER = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """What a model writes between two turns of the engine.

    text: its complete characters. stops: strings that end it; text ends before the first one.
    opening: no stop string is looked for in it, where the text begins with it. tokens: how many
    were written. control: the control token that ended it, if one did.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), opening: str = ""):
        self.text, self.tokens = "", 0
        self.control: str | None = None
        self.stopped = False
        self._tokenizer, self._stops, self._opening = tokenizer, tuple(stops), opening
        self._names = {tokenizer.control_id(name): name for name in CONTROL_TOKENS}
        self._decoder = _DECODER("replace")  # holds back bytes of a character that is incomplete
        self._shown = 0

    def append(self, token: int) -> None:
        self.control = self._names.get(token)
        if self.control is not None:
            return
        self.tokens += 1
        self.text += self._decoder.decode(self._tokenizer.token_bytes(token))
        found = [at for stop in self._stops if (at := self.text.find(stop, self._begin())) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def new_text(self, ended: bool) -> str:
        """Text not handed out yet; until it has `ended`, without what may begin a stop string."""
        end = len(self.text) - (0 if ended else self._held())
        piece, self._shown = self.text[self._shown : end], max(self._shown, end)
        return piece

    def _begin(self) -> int:
        """Where stop strings are looked for from."""
        if self.text.startswith(self._opening):
            return len(self._opening)
        return len(self.text) if self._opening.startswith(self.text) else 0

    def _held(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        begin = 0 if self._opening.startswith(self.text) else self._begin()
        longest = max(map(len, self._stops), default=0)
        for count in range(min(longest - 1, len(self.text) - begin), 0, -1):
            if any(stop.startswith(self.text[-count:]) for stop in self._stops):
                return count
        return 0
