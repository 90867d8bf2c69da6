"""The command line: help, exit codes, JSON alone on standard output."""

import pytest

from msa_train.cli import main


def test_every_command_has_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for command in ("doctor", "quickstart", "data", "train", "export", "memory", "ask", "eval",
                    "conformance", "bench"):  # fmt: skip
        assert command in shown


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train", "--config", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["train", "--config", "configs/quickstart.yaml", "--model.top", "3"], 2, "model.top"),
        (["export", "nowhere", "out"], 4, "nowhere"),
        (["memory", "info", "nowhere"], 5, "nowhere"),
        (["ask", "nowhere", "bank", "who?"], 4, "nowhere"),
        (["conformance", "docs"], 6, "docs"),
        (["bench", "kernels", "nothing"], 2, "nothing"),
        (["doctor", "--frobnicate"], 2, "--frobnicate"),
    ],
)
def test_what_is_wrong_is_named_with_its_exit_code(arguments, code, said, capsys, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(Path(__file__).resolve().parent.parent)
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def raise_missing(options):
    raise ModuleNotFoundError("No module named 'tea'", name="tea")


def raise_interrupt(options):
    raise KeyboardInterrupt


def raise_closed(options):
    raise BrokenPipeError


@pytest.mark.parametrize(
    ("run", "code", "said"),
    [
        (raise_missing, 7, "the package 'tea' is not installed"),
        (raise_interrupt, 130, "interrupted"),
        (raise_closed, 1, ""),
    ],
)
def test_what_ends_a_command_has_its_exit_code(run, code, said, capsys, monkeypatch):
    monkeypatch.setattr("msa_train.commands.doctor._doctor", run)
    assert main(["doctor"]) == code
    assert said in capsys.readouterr().err


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    def wrong(options):
        raise ValueError("a bug")

    monkeypatch.setattr("msa_train.commands.doctor._doctor", wrong)
    with pytest.raises(ValueError, match="a bug"):
        main(["doctor"])
