"""`msa doctor`: versions, backends, devices, what is missing and how to get it."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from importlib import metadata
from typing import Any

from msa_train.commands.output import add_json, print_json
from msa_train.errors import NoDeviceError

PACKAGES = {  # distribution -> (extra that installs it, what it is for)
    "torch": ("", "everything"),
    "safetensors": ("", "exports"),
    "pyarrow": ("", "memory banks"),
    "sentencepiece": ("", "tokenizer"),
    "jsonargparse": ("", "configuration"),
    "deepspeed": ("train", "training"),
    "megatron-core": ("train", "training"),
    "webdataset": ("train", "shards"),
    "wandb": ("train", "tracking (optional)"),
    "triton": ("gpu", "kernels"),
    "liger-kernel": ("gpu", "fused norms and losses (optional)"),
    "bm25s": ("eval", "BM25: the baseline, and --hybrid bm25"),
    "matplotlib": ("eval", "plots"),
    "gguf": ("backbone", "GGUF files to import (optional)"),
    "transformers": ("huggingface", "exports as its models (optional)"),
}

MISSING = 7  # exit code

CUDA_TORCH = (
    "make setup-gpu TORCH_INDEX=https://download.pytorch.org/whl/cu130 (or the index of your "
    "driver's CUDA) in an empty .venv"
)


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "doctor", help="what is installed, what runs where, what is missing"
    )
    parser.add_argument("--need-gpu", action="store_true", help="fail where torch sees no GPU")
    add_json(parser)
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    report = examine()
    if options.json:
        print_json(report)
    else:
        _print(report)
    if options.need_gpu and not report["gpus"]:
        raise NoDeviceError(f"no GPU: {report['no_gpu']}")
    missing = any(p["missing"] and p["required"] for p in report["packages"])
    return MISSING if missing else 0


def examine() -> dict[str, Any]:
    """Machine, packages, devices and kernel backends as plain data."""
    import torch
    from msa_kernels import backend_report

    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "packages": [_package(name) for name in PACKAGES],
        "gpus": [
            {
                "name": torch.cuda.get_device_name(i),
                "memory_gb": round(torch.cuda.get_device_properties(i).total_memory / 1e9, 1),
                "capability": ".".join(map(str, torch.cuda.get_device_capability(i))),
            }
            for i in range(torch.cuda.device_count())
        ],
        "no_gpu": _no_gpu(),
        "launcher": shutil.which("deepspeed", path=_own_path()),
        "kernels": backend_report(),
    }


def _no_gpu() -> str | None:
    """Why torch sees no GPU, and what to do; None where it sees one."""
    import torch

    if torch.cuda.device_count():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: {CUDA_TORCH}"
    if (shown := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return f'CUDA_VISIBLE_DEVICES is "{shown}": name a GPU in it, or unset it'
    return (
        f"torch {torch.__version__} for CUDA {torch.version.cuda} finds no device: look at "
        f"nvidia-smi; where that shows one, its driver may be too old: {CUDA_TORCH}"
    )


def _own_path() -> str:
    return os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")


def _package(name: str) -> dict[str, Any]:
    extra, purpose = PACKAGES[name]
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = None
    remedy = f"pip install 'msa-train[{extra}]'" if extra else "pip install msa-train"
    return {
        "name": name,
        "version": version,
        "purpose": purpose,
        "required": extra == "",
        "missing": version is None,
        "remedy": remedy if version is None else None,
    }


def _print(report: dict[str, Any]) -> None:
    print(f"python {report['python']} on {report['machine']}, {report['cores']} cores, "
          f"{report['memory_gb']} GB memory")  # fmt: skip
    for package in report["packages"]:
        state = package["version"] or f"MISSING: {package['remedy']}"
        print(f"  {package['name']:<16} {state:<24} {package['purpose']}")
    for gpu in report["gpus"]:
        print(f"GPU {gpu['name']}, {gpu['memory_gb']} GB, capability {gpu['capability']}")
    if not report["gpus"]:
        print("GPUs: none (everything runs on the CPU; DeepSpeed uses gloo)")
        print(f"  for one: {report['no_gpu']}")
    print(f"deepspeed launcher: {report['launcher'] or 'MISSING: make setup'}")
    print("kernels:")
    for name, choice in report["kernels"].items():
        print(f"  {name:<20} {choice['backend']:<8} {choice['reason']}")
