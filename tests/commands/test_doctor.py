"""`msa doctor`: what is installed, what is missing and how to get it."""

import json
from importlib import metadata

import pytest
import torch

from msa_train.cli import main
from msa_train.commands import doctor
from msa_train.errors import NoDeviceError


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


@pytest.mark.parametrize(
    ("cuda", "shown", "said"),
    [
        (None, None, "is built without CUDA: make setup-gpu TORCH_INDEX="),
        ("13.0", "", 'CUDA_VISIBLE_DEVICES is "": name a GPU in it'),
        ("13.0", None, "for CUDA 13.0 finds no device: look at nvidia-smi"),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_explained(monkeypatch, capsys, cuda, shown, said):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert main(["doctor"]) == 0
    assert said in capsys.readouterr().out
    assert main(["doctor", "--need-gpu"]) == NoDeviceError.exit_code
    assert said in capsys.readouterr().err
