"""No Triton kernel is left out of the launches that are compiled."""

import importlib
import json
import pkgutil

import msa_kernels
from triton.runtime.jit import JITFunction

from msa_train.bench.kernels.launches import is_default, launches
from tests.house.sources import ROOT

TABLE = ROOT / "docs/results/kernels-compiled.json"


def test_every_kernel_is_launched_and_in_the_table():
    kernels = set()
    for module in pkgutil.iter_modules(msa_kernels.__path__):
        if module.name.endswith("_triton"):
            found = vars(importlib.import_module(f"msa_kernels.{module.name}"))
            kernels |= {
                name
                for name, value in found.items()
                # Launched ones; what they call has a name with an underscore.
                if isinstance(value, JITFunction) and not name.startswith("_")
            }
    rows = json.loads(TABLE.read_text())
    assert {row["kernel"] for row in rows} == kernels
    names = [each.name for each in launches()]
    assert len(set(names)) == len(names)
    assert {row["launch"] for row in rows} == set(names)


def test_default_launches_are_of_half_precision():
    names = [each.name for each in launches()]
    assert is_default("attend bfloat16 to float32 chunks, gate")
    assert is_default("documents: 1 x 1 rows of float32, int8 keys")
    assert not is_default("attend float32 to float16 chunks, gate")
    assert not is_default("chunks: 1 x 16 rows of float32, float32 keys")
    assert 50 < sum(map(is_default, names)) < len(names)
