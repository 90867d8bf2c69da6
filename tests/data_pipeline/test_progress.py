"""The progress bar: counts, the rate and the time left on a terminal; silence elsewhere."""

import io
import sys

import pytest

from data_pipeline.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """terminal() is standard error from then on (pytest sets its own before each test)."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")

    def start():
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return start


def test_counts_of_a_known_total(terminal):
    screen = terminal()
    with ProgressBar("building shards", "samples", 1200) as bar:
        bar.advance(250)
        bar.advance(50)
    shown = screen.getvalue()
    assert "building shards" in shown and "  300/1,200 samples" in shown
    assert "/s" not in shown


def test_the_label_may_change(terminal):
    screen = terminal()
    with ProgressBar("", "questions", 4) as bar:
        bar.describe("single, 1,000 documents")
        bar.advance(4)
    assert "single, 1,000 documents" in screen.getvalue()
    assert "4/4 questions" in screen.getvalue()


def test_the_rate_is_of_the_work_and_the_total_may_come_later():
    known = iter([None, 10])
    bar = ProgressBar("encoding", "documents", lambda: next(known), "tokens")
    bar._began -= 2
    bar.advance(3, 4000)
    (task,) = bar._bar.tasks
    assert task.total is None and task.fields["counts"].startswith("3 documents 4,000 tokens ")
    assert 0 < int(task.fields["counts"].split()[-1].rstrip("/s").replace(",", "")) <= 2000
    bar.advance(2)
    assert task.total == 10 and task.completed == 5
    assert task.fields["counts"].startswith(" 5/10 documents 4,000 tokens ")


def test_nothing_is_printed_where_there_is_no_terminal(capsys):
    with ProgressBar("encoding", "documents", 3, "tokens") as bar:
        bar.describe("something else")
        bar.advance(3, 100)
    assert capsys.readouterr() == ("", "")
