"""The rooms import in one direction, and heavy packages stay where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("msa_train", "msa_kernels", "data_pipeline")

# room -> rooms it may import (itself always)
ALLOWED = {
    "msa_kernels": set(),
    "data_pipeline": set(),
    "msa_train.errors": set(),
    "msa_train.checkpoint_folders": {"data_pipeline", "msa_train.errors"},
    "msa_train.parallel": {"msa_train.errors"},
    "msa_train.model": {"msa_kernels", "msa_train.parallel", "msa_train.errors"},
    "msa_train.stages": {"data_pipeline", "msa_train.errors"},
    "msa_train.config": {
        "msa_train.model", "data_pipeline", "msa_train.errors", "msa_train.stages",
    },
    "msa_train.training": {
        "msa_train.model", "msa_train.parallel", "data_pipeline", "msa_train.config",
        "msa_train.errors", "msa_train.checkpoint_folders", "msa_train.stages", "msa_kernels",
    },
    "msa_train.interop": {
        "msa_train.model", "msa_train.errors", "msa_train.checkpoint_folders", "data_pipeline",
    },
    "msa_train.memory": {
        "msa_train.model", "msa_kernels", "msa_train.parallel", "data_pipeline",
        "msa_train.errors",
    },
    "msa_train.bench": {
        "msa_train.memory", "msa_train.model", "msa_train.training", "msa_train.parallel",
        "msa_train.interop", "msa_train.config", "msa_kernels", "data_pipeline", "msa_train.errors",
    },
    "msa_train.evaluation": {
        "msa_train.memory", "msa_train.model", "data_pipeline", "msa_train.config",
        "msa_train.errors",
    },
    "msa_train.serving": {
        "msa_train.memory", "msa_train.model", "data_pipeline",
        "msa_train.errors",
    },
}  # fmt: skip

# package -> the only places that may import it
HOMES = {
    "deepspeed": ("msa_train/training/engine.py", "msa_train/parallel/"),
    "megatron": ("msa_train/model/megatron", "msa_train/parallel/"),
    "wandb": ("msa_train/training/tracking/",),
    "webdataset": ("data_pipeline/shards.py", "data_pipeline/loader.py"),
    "transformers": ("msa_train/interop/huggingface.py",),
    "rensa": ("data_pipeline/cleaning/near.py",),
    "fastapi": ("msa_train/serving/",),
    "starlette": ("msa_train/serving/",),
    "pydantic": ("msa_train/serving/",),
    "uvicorn": ("msa_train/serving/",),
    "prometheus_client": ("msa_train/serving/",),
}


def sources():
    for folder in ("msa_train", "kernels/msa_kernels", "data_pipeline"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def room(module):
    parts = module.split(".")
    if parts[0] != "msa_train" or len(parts) == 1:
        return parts[0]
    return ".".join(parts[:2])


def module_of(path):
    relative = path.relative_to(ROOT)
    parts = relative.parts[1:] if relative.parts[0] == "kernels" else relative.parts
    return ".".join(parts).removesuffix(".py").removesuffix(".__init__")


@pytest.mark.parametrize("path", list(sources()), ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_in_one_direction(path):
    here = room(module_of(path))
    if here not in ALLOWED:  # the command line wires everything together
        return
    for module in imported(path):
        there = room(module)
        if there.split(".")[0] in OURS and there not in (here, "msa_train"):
            assert there in ALLOWED[here], f"{here} must not import {there}"
    if here == "msa_train.memory":
        assert not any(m.startswith("msa_train.model.megatron") for m in imported(path))


@pytest.mark.parametrize("path", list(sources()), ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_stay_home(path):
    relative = str(path.relative_to(ROOT))
    for module in imported(path):
        homes = HOMES.get(module.split(".")[0])
        assert homes is None or relative.startswith(homes), f"{module} is imported in {relative}"


def test_files_stay_small():
    long = {str(p): n for p in sources() if (n := len(p.read_text().splitlines())) > 300}
    assert not long, "one responsibility each"


@pytest.mark.parametrize(
    "module", ["msa_train", "msa_train.cli", "msa_train.model.decoder", "msa_kernels"]
)
def test_serving_imports_are_light(module):
    heavy = (
        "deepspeed, megatron, wandb, webdataset, transformers, matplotlib, triton, bm25s, fastapi"
    )
    code = f"import sys, {module}\nprint([m for m in {heavy.split(', ')!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
