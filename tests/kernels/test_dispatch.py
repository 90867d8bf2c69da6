"""Which backend runs what, and that the package stands alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from msa_kernels import KernelError, backend_report, chunk_mean, dispatch


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment or None
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cpu_tensors_take_the_torch_path(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    report = backend_report("cpu")
    assert set(report) == set(dispatch.OPERATIONS)
    assert {entry["backend"] for entry in report.values()} == {"torch"}
    assert all(entry["reason"] for entry in report.values())


def test_cuda_tensors_take_triton_where_a_kernel_exists(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_missing", lambda: None)
    cuda = torch.device("cuda")
    assert dispatch.choose("chunk_mean", cuda, torch.bfloat16).backend == "triton"
    assert dispatch.choose("chunk_mean", cuda, torch.float64).backend == "torch"
    assert dispatch.choose("top_documents", cuda, torch.float32).backend == "torch"


def test_a_missing_triton_is_the_reason(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_missing", lambda: "triton is not installed")
    choice = dispatch.choose("chunk_mean", torch.device("cuda"), torch.float32)
    assert choice == dispatch.BackendChoice("torch", "triton is not installed")


def test_without_triton_everything_on_the_cpu_works():
    code = """
import sys
sys.modules["triton"] = None  # any import of it raises
import torch, msa_kernels
cu = torch.tensor([0, 5])
x = torch.randn(5, 2, 4)
msa_kernels.chunk_mean(x, cu, 4)
msa_kernels.document_attention(x, x, x, cu, 0.5)
print(*(m.split(".")[0] for m in sys.modules))
"""
    loaded = set(python(code).split())
    assert not loaded & {"msa_train", "data_pipeline", "transformers", "deepspeed"}


def test_operators_on_the_cpu_import_neither_triton_nor_the_compiler():
    code = """
import sys, torch, msa_kernels
x = torch.ones(5, 2, requires_grad=True)
msa_kernels.chunk_mean(x, torch.tensor([0, 5]), 4).sum().backward()
print({"triton", "torch._dynamo"} & set(sys.modules))
"""
    assert python(code).strip() == "set()"


def test_gradients_are_not_differentiated_again():
    x = torch.ones(5, 2, requires_grad=True)
    out = chunk_mean(x, torch.tensor([0, 5]), 4).square().sum()
    (gradient,) = torch.autograd.grad(out, x, create_graph=True)
    with pytest.raises(KernelError, match="chunk_mean_backward has no gradient"):
        gradient.sum().backward()


def test_the_folder_installs_as_a_package_of_its_own(tmp_path):
    folder = Path(__file__).resolve().parents[2] / "kernels"
    shutil.copytree(folder, tmp_path / "kernels")  # a build writes beside what it builds
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    made = tmp_path / "made"
    subprocess.run([*wheel, "-w", str(made), str(tmp_path / "kernels")], check=True, timeout=300)
    (file,) = made.iterdir()
    assert file.name.startswith("msa_kernels-")
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import msa_kernels
assert msa_kernels.__file__.startswith(sys.argv[1])
import importlib.util
assert importlib.util.find_spec("msa_kernels.attend_triton")
"""
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, timeout=300)
