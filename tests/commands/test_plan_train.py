"""`msa plan train`: what it prints, and its exit codes."""

import json

import pytest

from msa_train.cli import main
from msa_train.errors import ConfigError

GIVEN = ["plan", "train", "configs/train/msa-4b.yaml", "--training.batch_samples", "64"]


def test_a_run_is_planned_and_its_layouts_compared(capsys):
    more = ["--tokens", "158.95B", "--price-per-gpu-hour", "2", "--layouts", "3"]
    more += ["--simulate", "--sample-spread", "0.2"]
    assert main([*GIVEN, "--gpus", "64xH100-80GB", *more]) == 0
    shown = capsys.readouterr().out
    for said in (
        "4,258,397,732 parameters", "64 x H100-80GB", "in 8 machines", "activations of documents",
        "reduce-scatter", "attention and routing are", "sft long", "158,950,000,000 memory tokens",
        "at the given price", "layouts that fit", "more than a card's memory", "no GPU has",
        "A drawn step of stage", "what breaks first: waiting for longer samples",
    ):  # fmt: skip
        assert said in " ".join(shown.split()), said
    assert main([*GIVEN, "--gpus", "64xH100-80GB", *more, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["fits"] and len(found["layouts"]) == 3 and found["impossible"] is None
    drawn = found["simulation"]
    assert drawn["total"] >= sum(drawn["parts"].values()) > 0 and drawn["assumed"]
    assert found["layouts"][0]["days"] <= found["plan"]["days"] and found["assumed"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--gpus", "64xH100-80GB", "--training.batch_samples", "30"],
            "is 30, which 64 data-parallel ranks cannot share",
        ),
        (["--gpus", "2xRTX-4090-24GB"], "DOES NOT FIT"),
        (
            [
                "--gpus",
                "8xH100-80GB",
                "--training.tensor_parallel",
                "8",
                "--training.document_parallel",
                "2",
            ],
            "does not divide: start a multiple of 16",
        ),
    ],
)
def test_a_layout_that_cannot_be_is_said_and_others_shown(capsys, arguments, said):
    assert main([*GIVEN, *arguments]) == ConfigError.exit_code
    shown = " ".join(capsys.readouterr().out.split())
    assert said in shown and ("layouts that fit" in shown or "No layout" in shown)


def test_a_file_that_is_not_there_is_named(capsys):
    for command in (["plan", "train"], ["train", "--config"], ["data", "build", "--config"]):
        more = ["--gpus", "8xH100-80GB"] if command[0] == "plan" else []
        assert main([*command, "nothing.yaml", *more]) == 2
        assert capsys.readouterr().err == "msa: --config nothing.yaml: no such file\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "12xH100-80GB"], "no whole number of machines of 8"),
        (["--gpus", "16xL40S-48GB"], "give --network"),
        (["--gpus", "8xH100-80GB", "--utilisation", "40"], "utilisation is 40"),
        (["--gpus", "8xH100-80GB", "--tokens", "many"], "tokens is 'many'"),
        (["--gpus", "8xH100-80GB", "--link", "fast"], "link is 'fast': give bytes a second"),
        (["--gpus", "8xH100-80GB", "--layouts", "-1"], "layouts is -1"),
        (["--gpus", "8xH100-80GB", "--training.zero_stage", "9"], "training.zero_stage"),
        (["--gpus", "8xH100-80GB", "--context-tokens", "0"], "context-tokens is 0"),
        (["--gpus", "8xH100-80GB", "--restart-s", "9"], "only --simulate draws"),
        (
            ["--gpus", "8xH100-80GB", "--simulate", "--deaths-per-node-day", "9999"],
            "would never reach the next; give a lower training.checkpoint_every",
        ),
    ],
)
def test_what_cannot_be_is_refused(capsys, arguments, said):
    assert main([*GIVEN, *arguments]) == 2
    assert said in capsys.readouterr().err
