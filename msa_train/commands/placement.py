"""Where a command's model computes, and in what: the same flags for every command."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msa_train.interop.export import Placement


def add_device(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--device", help="cpu, cuda or cuda:N (default: cuda where torch sees a GPU)"
    )


def add_placement(parser: argparse._ActionsContainer) -> None:
    add_device(parser)
    parser.add_argument(
        "--compute",
        choices=("float32", "bfloat16"),
        help="what the model computes in (default: bfloat16 on a GPU, float32 on a CPU, where "
        "bfloat16 is faster with AMX, and coarser)",
    )


def device_of(options: argparse.Namespace) -> str:
    """cpu or cuda:N. Raises ConfigError for a device that is not there."""
    import torch

    from msa_train.errors import ConfigError

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = options.device or ("cuda" if there else "cpu")
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if not found:
        raise ConfigError(f"--device {device}: give cpu, cuda or cuda:N")
    if device != "cpu" and int(found[1] or 0) >= there:
        raise ConfigError(f"--device {device}: torch sees {there} GPUs here")
    return "cpu" if device == "cpu" else f"cuda:{int(found[1] or 0)}"


def placement(options: argparse.Namespace) -> Placement:
    """Raises ConfigError for a device that is not there."""
    from msa_train.interop.export import Placement

    device = device_of(options)
    return Placement(device, options.compute or usual_compute(device != "cpu"))


def usual_compute(on_gpu: bool) -> str:
    """The dtype of weights, and of K and V, where --compute is left out."""
    return "bfloat16" if on_gpu else "float32"
