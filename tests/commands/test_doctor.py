"""`msa doctor`: what is installed, what is missing and how to get it."""

import json
from importlib import metadata

import pytest

from msa_train.cli import main
from msa_train.commands import doctor


def test_doctor_prints_json_alone(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {p["name"] for p in report["packages"]} >= {"torch", "deepspeed", "megatron-core"}
    assert report["kernels"]["document_scores"]["backend"] == "torch"


@pytest.mark.parametrize(
    ("package", "code", "remedy"),
    [("wandb", 0, "pip install 'msa-train[train]'"), ("pyarrow", 7, "pip install msa-train")],
)
def test_a_missing_package_is_shown_with_its_remedy(package, code, remedy, monkeypatch, capsys):
    installed = metadata.version

    def version(name):
        if name == package:
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert main(["doctor"]) == code
    assert f"MISSING: {remedy}" in capsys.readouterr().out
