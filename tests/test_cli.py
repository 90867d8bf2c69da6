"""The command line: help, exit codes, JSON alone on standard output."""

import json

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


def test_doctor_prints_json_alone(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {p["name"] for p in report["packages"]} >= {"torch", "deepspeed", "megatron-core"}
    assert report["kernels"]["document_scores"]["backend"] == "torch"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train", "--config", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["train", "--config", "configs/quickstart.yaml", "--model.top", "3"], 2, "model.top"),
        (["export", "nowhere", "out"], 4, "nowhere"),
        (["memory", "info", "nowhere"], 5, "nowhere"),
        (["ask", "nowhere", "bank", "who?"], 4, "nowhere"),
        (["conformance", "docs"], 6, "docs"),
        (["bench", "nothing"], 2, "nothing"),
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
