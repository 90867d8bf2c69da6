"""The log: a line for an event, whatever a client sent."""

import logging
import sys

import pytest

from msa_train.serving.logs import REQUEST_ID, LineFormatter, Repeats, begin_request, escaped

FORGED = "x\n2026-11-27 INFO DELETE bank 200\x1b[2J\u2028\ud800"


def record(message, *given, error=None):
    return logging.LogRecord("a", logging.INFO, __file__, 1, message, given, error)


def test_what_a_client_sent_makes_no_line_of_its_own():
    line = LineFormatter("%(levelname)s %(message)s").format(record("path %s", FORGED))
    assert line == "INFO path x\\n2026-11-27 INFO DELETE bank 200\\x1b[2J\\u2028\\ud800"
    assert escaped("Zürich 中文 /v1") == "Zürich 中文 /v1"


def test_a_tracebacks_lines_begin_with_a_bar():
    try:
        raise ValueError(FORGED)
    except ValueError:
        text = LineFormatter("%(message)s").format(record("failed", error=sys.exc_info()))
    first, *rest = text.splitlines()
    assert first == "failed" and len(rest) > 3
    assert all(line.startswith("  | ") and line.isprintable() for line in rest)


@pytest.fixture
def forgotten():
    """The id of no request, afterwards too."""
    token = REQUEST_ID.set("")
    yield
    REQUEST_ID.reset(token)


def test_a_line_names_its_request(forgotten):
    formatter = LineFormatter("%(message)s")
    assert formatter.format(record("started")) == "started"
    assert begin_request("trace-7:a/b") == "trace-7:a/b"
    assert formatter.format(record("asked")) == "asked [trace-7:a/b]"


@pytest.mark.parametrize("given", [None, "", "a b", "a\nb", "x" * 129, "ü", "a]"])
def test_an_id_that_would_spoil_the_log_is_not_taken(forgotten, given):
    made = begin_request(given)
    assert made.startswith("req_") and len(made) == 28 and made != begin_request(given)


def test_what_repeats_itself_is_left_out_and_counted():
    repeats, shown = Repeats(most=3, seconds=10), []

    def log(at, message="full: %s", level=logging.ERROR):
        each = record(message, at)
        each.created, each.levelno = at, level
        if repeats.filter(each):
            shown.append(each.getMessage())

    for at in range(9):
        log(at)
        log(at, "request %s", logging.INFO)
    log(3, "another: %s")
    log(11)
    assert len(shown) == 3 + 9 + 1 + 1
    assert shown[-2:] == ["another: 3", "full: 11 (and 6 more in the meantime)"]
