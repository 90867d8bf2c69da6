"""The server's log: one line for one event, whatever a client sent, with the id of its request."""

from __future__ import annotations

import logging
import re
import secrets
from contextvars import ContextVar
from types import TracebackType

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_KIND = 80  # characters of a message's form, which tell it from others
_KINDS = 1000
_TAKEN = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def start_logging() -> None:
    """To standard error, for the whole process."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(_FORMAT))
    handler.addFilter(Repeats())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def begin_request(given: str | None) -> str:
    """The id of the request that this task serves from now on: the client's (`x-request-id`), where
    it gives one of up to 128 letters, digits and . _ : / + = @ -, else a new one."""
    taken = given is not None and _TAKEN.fullmatch(given)
    found = given if taken and given is not None else f"req_{secrets.token_hex(12)}"
    REQUEST_ID.set(found)
    return found


def escaped(text: str) -> str:
    """In one line, and nothing in it that a terminal obeys."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Repeats(logging.Filter):
    """Lets a warning or an error through `most` times in `seconds`; the next time it comes after
    that, it says how many were left out."""

    def __init__(self, most: int = 10, seconds: float = 10.0):
        super().__init__()
        self._most, self._seconds = most, seconds
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}  # since when, how often

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        kind = record.name, str(record.msg)[:_KIND]
        since, count = self._seen.get(kind, (record.created, 0))
        left_out = 0
        if len(self._seen) > _KINDS:
            self._seen.clear()
        if record.created - since >= self._seconds:
            since, count, left_out = record.created, 0, max(count - self._most, 0)
        self._seen[kind] = since, count + 1
        if left_out:
            record.msg = f"{record.msg} (and {left_out} more in the meantime)"
        return count < self._most


class LineFormatter(logging.Formatter):
    """What is logged may hold a client's words: none of them can look like a line of its own. The
    lines of a traceback begin with a bar."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = escaped(record.message)
        line, request = super().formatMessage(record), REQUEST_ID.get()
        return f"{line} [{request}]" if request else line

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"  | {escaped(line)}" for line in lines)
