"""Lines for people, who may be gone."""

import os
import sys

from msa_train.training.saying import say


def test_a_line_goes_to_standard_error(capsys):
    say("step 1")
    assert capsys.readouterr().err == "step 1\n"


def test_a_broken_pipe_is_no_error(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", buffering=1) as broken:
        monkeypatch.setattr(sys, "stderr", broken)
        say("nobody hears this")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)
