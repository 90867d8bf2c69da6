"""The server's log: one line for one event, whatever a client sent, with the id of its request."""

from __future__ import annotations

import logging
import re
import secrets
from contextvars import ContextVar
from types import TracebackType

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_TAKEN = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def start_logging() -> None:
    """To standard error, for the whole process."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(_FORMAT))
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
