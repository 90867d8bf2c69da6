"""`msa plan memory`: what it prints, and its exit codes."""

import json

import pytest

from msa_train.cli import main
from msa_train.errors import ConfigError


def test_the_command_prints_and_says_by_its_code_whether_it_fits(capsys):
    given = ["plan", "memory", "--tokens", "100M", "--model", "4b", "--host-ram", "512GiB"]
    assert main([*given, "--gpus", "2xA800-80GB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["floor"]["ms"] == pytest.approx(14.12, abs=0.01)
    assert main([*given, "--gpus", "1xA800-80GB"]) == ConfigError.exit_code
    shown = capsys.readouterr().out
    assert "DOES NOT FIT" in shown and "--keys int8" in shown
    assert main([*given, "--gpus", "2xV100"]) == 2
    assert "SIZE@BANDWIDTH" in capsys.readouterr().err
    assert main([*given, "--gpus", "none", "--keys", "int3"]) == 2
    assert "keys is 'int3'" in capsys.readouterr().err
    assert main([*given[:4], "--model", "nowhere", "--host-ram", "1GB", "--gpus", "none"]) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--hot-mb", "nan"), "hot_mb is nan"),
        (("--hot-mb", "inf"), "hot_mb is inf"),
        (("--chunks-per-1k", "nan"), "chunks-per-1k is nan"),
        (("--chunks-per-1k", "inf"), "chunks-per-1k is inf"),
        (("--dtype", "int8"), "dtype is 'int8': give float32"),
    ],
)
def test_numbers_that_are_none_are_refused(capsys, arguments, said):
    given = "--tokens", "1M", "--model", "4b", "--gpus", "none", "--host-ram", "24GiB"
    assert main(["plan", "memory", *given, *arguments]) == 2
    assert said in capsys.readouterr().err
