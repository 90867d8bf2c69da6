"""Which backend runs an operation, and why; and the checks that operations share.

CUDA tensors -> Triton where a Triton kernel exists; CPU tensors -> the tiled torch path;
TRITON_INTERPRET=1 (set before Triton is imported) -> the Triton code on CPU tensors. The torch
paths run on any device. Tensors that no path can take are refused with the reason.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from msa_kernels.errors import KernelError

TRITON_OPERATIONS = (
    "chunk_mean",
    "document_scores",
    "chunk_scores",
    "document_attention",
    "context_attention",
    "norm_rope",
    "quantise",
)
OPERATIONS = (*TRITON_OPERATIONS, "top_documents", "select_chunks")
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class BackendChoice:
    """The backend ("triton" or "torch") that runs an operation, and the reason."""

    backend: str
    reason: str


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def triton_missing() -> str | None:
    """Why Triton cannot be used here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    try:
        import triton  # noqa: F401
    except Exception as error:  # a broken install must not take the torch paths down with it
        return f"triton does not import: {error}"
    return None


def operator(name: str, learns: bool = True) -> Callable[[Callable], torch._ops.OpOverload]:
    """Makes of a function that changes no argument, and returns none, torch.ops.msa_kernels.<name>.

    learns: a gradient is registered for it; asking for that of another raises KernelError.
    """
    # torch.library.custom_op makes the same, and imports torch's compiler when it is first called:
    # 1.5 s in every process that asks a memory.
    full = f"msa_kernels::{name}"

    def refuse(ctx, *_):
        raise KernelError(f"{full} has no gradient")

    def register(function: Callable) -> torch._ops.OpOverload:
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(full, schema, tags=[torch.Tag.pt2_compliant_tag])
        torch.library.impl(full, "default", function)
        if not learns:
            torch.library.register_autograd(full, refuse)
        return getattr(torch.ops.msa_kernels, name).default

    return register


def on_its_device(launcher: Callable) -> Callable:
    """Makes the device of a launcher's first tensor the current one while it runs: Triton starts
    kernels on the current device, wherever their tensors lie."""

    @functools.wraps(launcher)
    def launch(first: Tensor, *rest):
        if not first.is_cuda:
            return launcher(first, *rest)
        with torch.cuda.device(first.device):
            return launcher(first, *rest)

    return launch


def launcher(start: Callable) -> Callable:
    """Makes of a function, which starts Triton kernels, one that takes tensors of any strides:
    kernels count rows as if one lay behind the other. Runs on its first tensor's device."""
    run = on_its_device(start)

    @functools.wraps(start)
    def launch(*given):
        return run(*map(_row_by_row, given))

    return launch


def _row_by_row(given):
    if isinstance(given, tuple):
        return tuple(map(_row_by_row, given))
    return given.contiguous() if isinstance(given, Tensor) else given


def choose(operation: str, device: torch.device, dtype: torch.dtype) -> BackendChoice:
    """The backend for `operation` on tensors of this device and dtype."""
    if operation not in TRITON_OPERATIONS:
        return BackendChoice("torch", "made of torch's own operations on every device")
    if device.type != "cuda" and not (device.type == "cpu" and interpreting()):
        return BackendChoice("torch", f"{device.type} tensors take the tiled torch path")
    if dtype not in TRITON_DTYPES:
        return BackendChoice(
            "torch", f"the Triton kernel accumulates in float32, tensors are {dtype}"
        )
    if missing := triton_missing():
        return BackendChoice("torch", missing)
    return BackendChoice("triton", "TRITON_INTERPRET=1" if device.type == "cpu" else "CUDA tensors")


def takes_triton(operation: str, *tensors: Tensor) -> bool:
    """Whether the Triton kernel runs on these tensors."""
    chosen = (choose(operation, x.device, x.dtype).backend for x in tensors)
    return all(backend == "triton" for backend in chosen)


def backend_report(device: str | torch.device | None = None) -> dict[str, dict[str, str]]:
    """{operation: {"backend", "reason"}} for float32 tensors of `device` (default: CUDA if any)."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    return {name: asdict(choose(name, device, torch.float32)) for name in OPERATIONS}


def check_floating(operation: str, **tensors: Tensor | None) -> None:
    """Refuses tensors that are not floating point, or not all on one device."""
    given = {name: x for name, x in tensors.items() if x is not None}
    for name, x in given.items():
        if not x.is_floating_point() or x.dtype.itemsize < 2:
            raise KernelError(
                f"{operation}: {name} is {x.dtype}; pass float32, bfloat16, float16 or float64"
            )
    devices = {name: str(x.device) for name, x in given.items()}
    if len(set(devices.values())) > 1:
        raise KernelError(f"{operation}: tensors lie on different devices: {devices}")


def check_cumulative(operation: str, name: str, cu: Tensor, total: int | None = None) -> None:
    """Refuses cumulative lengths that are not int64 [count+1] ending at `total` rows."""
    if cu.dtype != torch.int64 or cu.dim() != 1 or len(cu) == 0:
        raise KernelError(
            f"{operation}: {name} is {cu.dtype} of shape {tuple(cu.shape)}; "
            "pass int64 cumulative lengths [count + 1]"
        )
    if total is not None and can_inspect(cu) and int(cu[-1]) != total:
        raise KernelError(
            f"{operation}: {name} ends at {int(cu[-1])}, but there are {total} rows to divide"
        )


def check_numbers(operation: str, name: str, numbers: Tensor, count: int | None = None) -> None:
    """Refuses row numbers that are not int64 [count]: narrower ones overflow in a product."""
    if numbers.dtype != torch.int64 or numbers.dim() != 1 or count not in (None, len(numbers)):
        wanted = "any length" if count is None else str(count)
        raise KernelError(
            f"{operation}: {name} is {numbers.dtype} of shape {tuple(numbers.shape)}; "
            f"pass int64 [{wanted}]"
        )


def can_inspect(x: Tensor) -> bool:
    """Whether values can be read for free: not on an accelerator, which one would have to wait
    for, and not while torch.compile traces shapes."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def check_positive(operation: str, name: str, value: float) -> None:
    """Refuses zero and negative settings."""
    if value <= 0:
        raise KernelError(f"{operation}: {name} is {value}; it must be positive")


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Computes in the dtypes that the operation states, even where the caller runs autocast."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
