"""CUDA without a GPU: CPU tensors that claim to lie on cuda:0, and counts of what they would cost.

Within `pretended_cuda()` whatever is made on, or moved to, a CUDA device is such a tensor. Torch's
operations compute their values on the CPU; Triton kernels are launched by their real host code, but
do not run: an operation of msa_kernels takes its values from the torch path. `counting()` counts

* launches: of kernels, one for each operation of torch that is no view, one for each of Triton;
* syncs: where the host waits for the device. Reading a value, and every copy between host and
  device that is not `non_blocking`, upwards too: torch waits for the stream in both directions;
* copies: between host and device, in either direction;

with the line of the project that made each. A tensor of the CPU where a kernel on the device needs
one of the device is an error, as it is on a GPU. Graphs cannot be captured here.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from msa_kernels import attend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ROOT = Path(__file__).parents[2]
CUDA = torch.device("cuda", 0)
PRODUCT = tuple(str(ROOT / name) for name in ("kernels", "msa_train", "data_pipeline"))

# Operations that launch nothing, beside torch's views.
FREE = {
    "detach", "alias", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty",
    "new_empty_strided", "is_pinned", "is_same_size", "set_", "_unsafe_view",
    "view", "_reshape_alias", "_local_scalar_dense",
}  # fmt: skip
# Operations whose result's size, or value, the host has to know.
WAITS = {
    "_local_scalar_dense", "nonzero", "_unique", "_unique2", "unique_dim", "unique_consecutive",
    "masked_select", "is_nonzero", "equal", "bincount", "histc",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class MixedDevicesError(RuntimeError):
    """A kernel on the device was given a tensor of the CPU."""


class Counts:
    """What was done since counting began; `where` of each kind counts lines of the project."""

    def __init__(self) -> None:
        self.where: dict[str, Counter] = {"launch": Counter(), "sync": Counter(), "copy": Counter()}

    def add(self, kind: str, what: str, count: int = 1) -> None:
        self.where[kind][f"{_site()} {what}"] += count

    @property
    def launches(self) -> int:
        return self.where["launch"].total()

    @property
    def syncs(self) -> int:
        return self.where["sync"].total()

    @property
    def copies(self) -> int:
        return self.where["copy"].total()

    def __str__(self) -> str:
        """For a failing test: the totals, and the lines that make most of each kind."""
        lines = [f"{self.launches} launches, {self.syncs} syncs, {self.copies} copies"]
        for kind in ("sync", "copy", "launch"):
            lines += [f"  {kind} {n:4} {site}" for site, n in self.where[kind].most_common(12)]
        return "\n".join(lines)


_counts: Counts | None = None


@contextlib.contextmanager
def counting() -> Iterator[Counts]:
    """Counts what runs inside, which nests in nothing."""
    global _counts
    _counts = found = Counts()
    try:
        yield found
    finally:
        _counts = None


def _note(kind: str, what: str, count: int = 1) -> None:
    if _counts is not None:
        _counts.add(kind, what, count)


def _site() -> str:
    """The innermost line of the project that is at work."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PRODUCT):
            return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "test"


class Pretended(torch.Tensor):
    """A tensor of the CPU, `held`, that says it lies on cuda:0.

    To torch's C++ it lies on "meta": a torch built without CUDA cannot differentiate a CUDA tensor.
    """

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        # A view of what was made outside of inference mode is no inference tensor inside of it.
        with torch.inference_mode(held.is_inference()):
            return torch.Tensor._make_wrapper_subclass(
                cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
                dtype=held.dtype, device="meta", requires_grad=False,
            )  # fmt: skip

    def __init__(self, held: torch.Tensor):
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def __repr__(self) -> str:
        return f"Pretended({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Everything(TorchDispatchMode):
    """Sees what no argument tells: tensors made on the device, and copies to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        key = torch._C.DispatchKey.CompositeImplicitAutograd
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return _run(func, args, kwargs)


def _run(func, args: tuple, kwargs: dict):
    """One operation: its cost, and its result from the CPU."""
    given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    pretended = [x for x in given if isinstance(x, Pretended)]
    asked = kwargs.get("device")
    # Torch's C++ makes its own small tensors where the others seem to lie.
    on_device = bool(pretended) if asked is None else torch.device(asked).type in ("cuda", "meta")
    name = func._schema.name.split("::")[1]
    if func.namespace == "msa_kernels" and pretended:
        _refuse_mixed(func, [x for x in given if not isinstance(x, Pretended)])
        with _Everything():  # the real launches; their results are not computed
            func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
    elif name in ("_to_copy", "copy_"):
        _note_copy(name, args, kwargs, on_device)
    elif on_device or pretended:
        _note_operation(func, name, args, kwargs, given)
    if name == "_to_copy" and on_device and pretended and _same(args[0], kwargs):
        return Pretended(args[0].held)
    kwargs = dict(kwargs)
    if asked is not None and on_device:
        kwargs["device"] = torch.device("cpu")
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    back = {id(x.held): x for x in pretended}
    plain = {id(x) for x in given}
    real_args, real_kwargs = tree_map(
        lambda x: x.held if isinstance(x, Pretended) else x, (args, kwargs)
    )

    def wrapped(x):
        if not isinstance(x, torch.Tensor) or isinstance(x, Pretended) or id(x) in plain:
            return x
        if id(x) in back:
            return back[id(x)]
        return Pretended(x) if on_device else x

    compute = _IN_TORCH.get(name, func) if func.namespace == "msa_kernels" else func
    return tree_map(wrapped, compute(*real_args, **real_kwargs))


def _attend(*given) -> tuple[torch.Tensor, torch.Tensor]:
    """context_attention's torch path, which is no part of the operation."""
    q, k, v, q_cu, k_cu, pooled_k, pooled_v, index, index_cu, bias, head, scale = given
    cus, memory = (q_cu, k_cu, index_cu), (pooled_k.to(q.dtype), pooled_v.to(q.dtype), index, bias)
    out = attend._contexts_in_torch(q, k, v, cus, *memory, head, scale, 1 << 26)
    return out, q.new_zeros(q.shape[:2], dtype=torch.float32)


def _attend_backward(*given) -> tuple[torch.Tensor, ...]:
    # In a thread of its own: below the dispatcher of this one, nothing is differentiable.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_gradients, *given).result()


def _gradients(grad, _out, _lse, *given) -> tuple[torch.Tensor, ...]:
    given = [x.detach() if isinstance(x, torch.Tensor) else x for x in given]
    learnt = [given[place] for place in (0, 1, 2, 5, 6, 9) if given[place] is not None]
    with torch.enable_grad():
        out = _attend(*(x.requires_grad_() if _in(x, learnt) else x for x in given))[0]
        found = torch.autograd.grad(out, learnt, grad, materialize_grads=True)
    return *found, *([grad.new_empty(0)] if len(found) < 6 else [])


def _in(x, tensors: list) -> bool:
    return any(x is each for each in tensors)


_IN_TORCH = {"context_attention": _attend, "context_attention_backward": _attend_backward}


def _note_copy(name: str, args: tuple, kwargs: dict, on_device: bool) -> None:
    if name == "copy_":
        to, source = (isinstance(x, Pretended) for x in args[:2])
        waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    else:
        to, source = on_device, isinstance(args[0], Pretended)
        waits = not kwargs.get("non_blocking", False)
    if to and source:
        if name == "copy_" or not _same(args[0], kwargs):
            _note("launch", name)
    elif to or source:
        way = "to the device" if to else "to the host"
        _note("copy", way)
        if waits:
            _note("sync", f"copy {way}")


def _same(x: torch.Tensor, wanted: dict) -> bool:
    """Whether `x.to(...)` asks for what x is already: torch returns x, and copies nothing."""
    return wanted.get("dtype") in (None, x.dtype) and wanted.get("memory_format") is None


def _note_operation(func, name: str, args: tuple, kwargs: dict, given: list) -> None:
    plain = [x for x in given if not isinstance(x, Pretended)]
    if name in INDEXING:
        index = [x for x in args[1] if isinstance(x, torch.Tensor)]
        moved = [x for x in index if not isinstance(x, Pretended)]
        if moved and isinstance(args[0], Pretended):  # torch uploads them itself, and waits
            _note("copy", "index to the device", len(moved))
            _note("sync", "index to the device", len(moved))
            plain = [x for x in plain if not any(x is y for y in moved)]
        if any(x.dtype in (torch.bool, torch.uint8) for x in index):
            _note("sync", f"{name} by a mask")
    # A number of the CPU is read by the host, and passed on.
    _refuse_mixed(func, [x for x in plain if x.dim() > 0])
    if name in WAITS:
        _note("sync", name)
    if name == "repeat_interleave" and "output_size" not in kwargs:
        _note("sync", name)
    if name not in FREE and not func.is_view:
        _note("launch", name)


def _refuse_mixed(func, plain: list) -> None:
    if plain:
        shapes = [tuple(x.shape) for x in plain]
        raise MixedDevicesError(f"{func} at {_site()}: tensors of the CPU beside cuda:0: {shapes}")


class _Stream:
    """A stream, or an event: work is done at once, and waiting for it is a sync."""

    def __init__(self, *_, **__):
        self.cuda_stream = 0
        self.device = CUDA

    def synchronize(self) -> None:
        _note("sync", "waiting for a stream or an event")

    def query(self) -> bool:
        return True

    def record_event(self, event=None):
        return event or _Stream()

    def elapsed_time(self, _other) -> float:
        return 0.0

    def record(self, *_) -> None: ...
    def wait(self, *_) -> None: ...
    def wait_stream(self, *_) -> None: ...
    def wait_event(self, *_) -> None: ...


def _launch(kernel, *args, grid, warmup=False, **options) -> None:
    """In the place of Triton's compiler: a kernel's launch, with the host's real arguments."""
    tensors = [x for x in (*args, *options.values()) if isinstance(x, torch.Tensor)]
    _refuse_mixed(f"Triton's {kernel.fn.__name__}", [x for x in tensors if not _on_device(x)])
    _note("launch", f"Triton's {kernel.fn.__name__}")


def _on_device(x: torch.Tensor) -> bool:
    return isinstance(x, Pretended)


def _patches() -> list:
    """What goes around the dispatcher, or asks the driver."""
    make, to_list, get, put = (
        torch.tensor, torch.Tensor.tolist, torch.Tensor.__getitem__, torch.Tensor.__setitem__,
    )  # fmt: skip
    fused = F.scaled_dot_product_attention

    def tensor(data, *, dtype=None, device=None, **options):
        made = make(data, dtype=dtype, **options)
        wanted = device is not None and torch.device(device).type == "cuda"
        return made.to(device) if wanted else made

    def new_tensor(self, data, *, dtype=None, device=None, **options):
        options["dtype"], options["device"] = dtype or self.dtype, device or self.device
        return tensor(data, **options)

    def tolist(self):
        if not isinstance(self, Pretended):
            return to_list(self)
        _note("copy", "to the host")
        _note("sync", "tolist")
        return to_list(self.held)

    def by_lists(self, index):
        """A list as an index is a tensor that torch uploads."""
        if not isinstance(self, Pretended):
            return index
        if isinstance(index, tuple):
            return tuple(by_lists(self, each) for each in index)
        return make(index) if isinstance(index, list) else index

    def attention(q, k, v, attn_mask=None, **options):
        given = [x for x in (q, k, v, attn_mask) if x is not None]
        if not any(map(_on_device, given)):
            return fused(q, k, v, attn_mask=attn_mask, **options)
        _refuse_mixed("scaled_dot_product_attention", [x for x in given if not _on_device(x)])
        _note("launch", "scaled_dot_product_attention")
        mask = None if attn_mask is None else attn_mask.held
        return Pretended(fused(q.held, k.held, v.held, attn_mask=mask, **options))

    from triton.runtime import jit

    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _device: None,
        "get_device_capability": lambda _device=None: (9, 0),
        "get_device_name": lambda _device=None: "pretended",
        "get_device_properties": lambda _device=None: mock.Mock(
            total_memory=80 << 30, major=9, minor=0, multi_processor_count=132,
            shared_memory_per_block_optin=227 << 10, shared_memory_per_multiprocessor=228 << 10,
        ),
        "mem_get_info": lambda _device=None: (70 << 30, 80 << 30),
        "memory_allocated": lambda _device=None: 0,
        "_lazy_init": lambda: None,
        "Stream": _Stream,
        "Event": _Stream,
        "current_stream": _Stream,
        "default_stream": _Stream,
        "is_current_stream_capturing": lambda: False,
        "stream": lambda _stream: contextlib.nullcontext(),
        "device": lambda _device: contextlib.nullcontext(),
        "device_of": lambda _tensor: contextlib.nullcontext(),
        "synchronize": lambda _device=None: _note("sync", "waiting for the device"),
    }  # fmt: skip
    return [
        *(mock.patch.object(torch.cuda, name, value) for name, value in cuda.items()),
        mock.patch.object(torch, "tensor", tensor),
        mock.patch.object(torch.Tensor, "new_tensor", new_tensor),
        mock.patch.object(torch.Tensor, "tolist", tolist),
        mock.patch.object(torch.Tensor, "pin_memory", lambda self, *_: self),
        mock.patch.object(torch.Tensor, "record_stream", lambda self, _stream: None),
        mock.patch.object(torch.Tensor, "__getitem__", lambda x, i: get(x, by_lists(x, i))),
        mock.patch.object(torch.Tensor, "__setitem__", lambda x, i, v: put(x, by_lists(x, i), v)),
        mock.patch.object(F, "scaled_dot_product_attention", attention),
        mock.patch.object(jit.JITFunction, "run", _launch),
        # Megatron copies a view by assigning to `data`, which these tensors have not.
        *(
            mock.patch.object(sys.modules[name], "make_viewless_tensor", lambda inp, **_: inp)
            for name in ("megatron.core.transformer.transformer_block",)
            if name in sys.modules
        ),
    ]


@contextlib.contextmanager
def pretended_cuda() -> Iterator[torch.device]:
    """The device, to make tensors on. Patches torch for this thread's process: tests of one room
    that use it keep to themselves, as xdist's workers do."""
    if torch.version.cuda is not None:
        raise RuntimeError("torch is built for CUDA here: nothing needs to be pretended")
    with contextlib.ExitStack() as stack:
        for patch in _patches():
            stack.enter_context(patch)
        stack.enter_context(_Everything())
        yield CUDA


def on_device(module: torch.nn.Module) -> torch.nn.Module:
    """The module with its parameters and buffers on the device, in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = Pretended(parameter.data)
                part._parameters[name] = torch.nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = Pretended(buffer)
    return module
