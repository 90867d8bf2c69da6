"""The command line: help, exit codes, JSON alone on standard output."""

import errno
import re

import pytest

from msa_train import cli, errors
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


def test_every_exit_code_is_described():
    kinds = [each for each in vars(errors).values() if isinstance(each, type)]
    codes = {str(each.exit_code) for each in kinds if issubclass(each, errors.MSAError)}
    assert codes <= set(re.findall(r"\b\d+\b", cli.__doc__))


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


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/out"), "make room on that disk"),
        (OSError(errno.EROFS, "Read-only file system", "a/out"), "give a path that may be written"),
        (OSError(errno.EEXIST, "File exists", ".partial", None, "a/out"), "something else has"),
    ],
)
def test_what_the_system_refuses_is_said_in_one_line(error, said, capsys, monkeypatch):
    def refused(options):
        raise error

    monkeypatch.setattr("msa_train.commands.doctor._doctor", refused)
    assert main(["doctor"]) == 11
    shown = capsys.readouterr().err
    assert shown.startswith(f"msa: a/out: {error.strerror}; {said}") and shown.count("\n") == 1


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path, capsys):
    (tmp_path / "corpus.jsonl").write_text('{"text": "one"}\n')
    way = tmp_path / "file"
    way.write_text("x")
    command = ["data", "convert", "jsonl", str(tmp_path), "--out", str(way / "in" / "out")]
    assert main(command) == 11
    assert str(way) in capsys.readouterr().err
