"""Rooms import in one direction, files in no circle, and heavy packages stay where they belong."""

import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.house.sources import OURS, imported, module_of, modules, sources

_BASE = {"data_pipeline", "msa_train.errors"}
_BANK = _BASE | {"msa_kernels", "msa_train.model", "msa_train.memory.bank"}
_SEARCH = _BANK | {"msa_train.memory.search"}
_ENGINE = _SEARCH | {"msa_train.memory.engine"}

# room -> rooms it may import (itself always); the longest name that fits a module is its room
ALLOWED = {
    "msa_kernels": set(),
    "data_pipeline": set(),
    "msa_train": set(),
    "msa_train.errors": set(),
    "msa_train.checkpoint_folders": _BASE,
    "msa_train.hardware": _BASE,
    "msa_train.parallel": {"msa_train.errors"},
    "msa_train.model": {"msa_kernels", "msa_train.parallel", "msa_train.errors"},
    "msa_train.stages": _BASE,
    "msa_train.config": _BASE | {"msa_train.model", "msa_train.stages"},
    "msa_train.interop": _BASE | {"msa_train.model", "msa_train.checkpoint_folders"},
    "msa_train.interop.huggingface": _ENGINE | {"msa_train.interop"},
    "msa_train.training": _BASE
    | {
        "msa_kernels", "msa_train.model", "msa_train.parallel", "msa_train.config",
        "msa_train.stages", "msa_train.checkpoint_folders", "msa_train.hardware",
    },
    "msa_train.memory": set(),
    "msa_train.memory.bank": _BANK,
    "msa_train.memory.search": _SEARCH,
    "msa_train.memory.engine": _ENGINE,
    "msa_train.memory.ranks": _SEARCH | {"msa_train.hardware"},
    "msa_train.memory.planner": _SEARCH | {"msa_train.hardware"},
    "msa_train.router": _SEARCH | {"msa_train.interop"},
    "msa_train.evaluation": _ENGINE
    | {"msa_train.config", "msa_train.interop", "msa_train.router"},
    "msa_train.serving": _ENGINE 
    | {"msa_train.hardware", "msa_train.memory.planner", "msa_train.memory.ranks"},
}  # fmt: skip
WIRING = ("msa_train.cli", "msa_train.commands", "msa_train.bench")  # these may import all others

_DATA = ("data_pipeline.sources", "data_pipeline.shards", "data_pipeline.converters",
         "data_pipeline.cleaning", "data_pipeline.tokenizer")  # fmt: skip

# part of a room -> parts of the same room that it must not import
ABOVE = {
    "data_pipeline.tokenizer": _DATA,
    "data_pipeline.converters": _DATA,
    "data_pipeline.cleaning": _DATA,
    "data_pipeline.sources": ("data_pipeline.shards", *_DATA[2:4]),
    "data_pipeline.shards": _DATA[2:4],
    "msa_train.training.tracking": ("msa_train.training",),
    "msa_train.interop.export": ("msa_train.interop.conformance",),
}

# package -> the only places that may import it
HOMES = {
    "deepspeed": (
        "msa_train/training/engine.py",
        "msa_train/training/swap_files.py",
        "msa_train/parallel/",
    ),
    "megatron": ("msa_train/model/megatron", "msa_train/parallel/"),
    "wandb": ("msa_train/training/tracking/",),
    "webdataset": ("data_pipeline/shards",),
    "transformers": ("msa_train/interop/huggingface/", "msa_train/evaluation/dense.py"),
    "gguf": ("msa_train/interop/backbones/gguf_file.py",),
    "rensa": ("data_pipeline/cleaning/near.py",),
    "fastapi": ("msa_train/serving/",),
    "starlette": ("msa_train/serving/",),
    "pydantic": ("msa_train/serving/",),
    "uvicorn": ("msa_train/serving/",),
    "prometheus_client": ("msa_train/serving/",),
}


def room(module: str) -> str:
    names = (name for name in ALLOWED if f"{module}.".startswith(f"{name}."))
    return max(names, key=len)


@pytest.mark.parametrize("path", sources(), ids=str)
def test_rooms_import_in_one_direction(path):
    module = module_of(path)
    ours = {name for name in imported(path) if name.split(".")[0] in OURS}
    if f"{module}.".startswith(tuple(f"{name}." for name in WIRING)):
        return
    here = room(module)
    outside = {name for name in ours if f"{name}.".startswith(tuple(f"{w}." for w in WIRING))}
    assert not outside, f"{path} imports {outside}: what wires the rooms together is above them"
    there = {room(name) for name in ours} - {here, "msa_train"}
    assert there <= ALLOWED[here], f"{path} must not import {there - ALLOWED[here]}"
    if here.startswith("msa_train.memory"):
        assert not any(name.startswith("msa_train.model.megatron") for name in ours)


@pytest.mark.parametrize("part", ABOVE)
def test_parts_of_a_room_import_in_one_direction(part):
    members = {name for name in modules() if f"{name}.".startswith(f"{part}.")}
    assert members, "the part has another name now"
    above = tuple(f"{name}." for name in ABOVE[part])
    wrong = {
        f"{name} imports {other}"
        for name in members
        for other in imported(modules()[name]) - members
        if f"{other}.".startswith(above)
    }
    assert not wrong


def test_no_file_imports_itself_in_a_circle():
    """Not in a function either, and not for types alone."""
    graph = {
        name: {other for other in imported(path) if other in modules()} - {name}
        for name, path in modules().items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("path", sources(), ids=str)
def test_heavy_packages_stay_home(path: Path):
    for module in imported(path):
        homes = HOMES.get(module.split(".")[0])
        assert homes is None or str(path).startswith(homes), f"{module} is imported in {path}"


@pytest.mark.parametrize(
    "module", ["msa_train", "msa_train.cli", "msa_train.model.decoder", "msa_kernels"]
)
def test_serving_imports_are_light(module):
    heavy = (
        "deepspeed, megatron, wandb, webdataset, transformers, gguf, matplotlib, triton, bm25s, "
        "fastapi"
    )
    code = f"import sys, {module}\nprint([m for m in {heavy.split(', ')!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
