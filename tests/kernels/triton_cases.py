"""Triton kernels without a GPU: tests run in Triton's interpreter, kernels compiled for cards."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import triton
from msa_kernels.tiles import TILES, shrunk
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ROOT = Path(__file__).parents[2]
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}  # shared memory that a block may take
_GENERATION = {80: "ampere", 90: "hopper"}
_FLOAT = {"scales", "lse", "delta", "best_out", "weights", "bias", "d_bias", "cos", "sin",
          "d_weights", "squares", "lengths"}  # fmt: skip
_STATES = {"x", "dx", "query", "keys", "source", "out", "q", "k", "v", "pooled_k", "pooled_v",
           "grad", "dq", "dk", "dv", "q_out", "k_out", "q_weight", "k_weight", "q_grad",
           "k_grad", "values", "rest", "a", "b"}  # fmt: skip
_NUMBERS = {"features", "width", "contexts", "documents", "heads", "kv_heads",
            "head_dim", "count", "tokens", "q_heads", "k_heads", "half", "chunks",
            "token_bits"}  # fmt: skip
_REAL = {"scale", "eps", "largest"}
FLOAT32 = dict.fromkeys(_STATES, "*fp32")


def run_interpreted(suite: str, chosen: str = "") -> None:
    """The tests of tests/kernels/<suite> through Triton's interpreter; chosen: as pytest -k."""
    # Triton reads TRITON_INTERPRET when it is imported: another process.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-k", chosen, f"tests/kernels/{suite}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@dataclass(frozen=True)
class Launch:
    """A kernel as it is launched: its constants, the tiles it takes, types that differ."""

    kernel: triton.JITFunction
    constants: Mapping[str, int | bool]
    tiles: str | None = None
    types: Mapping[str, str] = field(default_factory=dict)


def compiled(launches: Mapping[str, Launch]) -> pytest.MarkDecorator:
    """Parametrises a test with every launch on every card; no e4m3 before Ada: torch runs there."""
    return pytest.mark.parametrize(
        ("launch", "capability"),
        [
            pytest.param(launch, capability, id=f"{name}-{capability}")
            for name, launch in launches.items()
            for capability in SHARED_BYTES
            if not (capability == 80 and "fp8" in name)
        ],
    )


def shared_bytes(launch: Launch, capability: int) -> int:
    """Compiles; returns the shared memory that a block takes."""
    sizes, warps, stages = TILES[_GENERATION[capability]][launch.tiles or "score"]
    if "D" in launch.constants and launch.tiles:
        sizes = shrunk(sizes, launch.constants["D"], 4 if launch.types == FLOAT32 else 2)
    constants = {**(sizes if launch.tiles else {}), **launch.constants}
    signature = {
        name: "constexpr" if name in constants else _type(name, launch.types)
        for name in launch.kernel.arg_names
    }
    done = triton.compile(
        ASTSource(launch.kernel, signature, constants, _divisible(launch.kernel, signature)),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    return done.metadata.shared


def _divisible(kernel: triton.JITFunction, signature: dict[str, str]) -> dict:
    """What a launch of usual sizes says of its arguments: pointers and widths in sixteens."""
    lengths = kernel.do_not_specialize or ()
    usual = [n for n, kind in signature.items() if kind[0] == "*" or kind == "i32"]
    places = [kernel.arg_names.index(n) for n in usual if n not in (*lengths, "kv_heads")]
    return {(place,): [["tt.divisibility", 16]] for place in places}


def _type(name: str, types: Mapping[str, str]) -> str:
    if name in types:
        return types[name]
    for names, kind in ((_FLOAT, "*fp32"), (_STATES, "*bf16"), (_NUMBERS, "i32"), (_REAL, "fp32")):
        if name in names:
            return kind
    return "*i64"
