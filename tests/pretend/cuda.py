"""CUDA without a GPU: CPU tensors that claim to lie on a card, and counts of what they would cost.

Within `pretended_cuda()` whatever is made on, or moved to, a CUDA device is such a tensor. Torch's
operations compute their values on the CPU; Triton kernels are launched by their real host code, but
do not run: an operation of msa_kernels takes its values from the torch path. `counting()` counts

* launches: of kernels, one for each operation of torch that is no view, one for each of Triton;
* syncs: where the host waits for the device. Reading a value, and every copy between host and
  device that is not `non_blocking`, upwards too: torch waits for the stream in both directions;
* copies: between host and device, in either direction;

with the line of the project that made each. A tensor of the CPU where a kernel on the device needs
one of the device is an error, as it is on a GPU. There are two cards (tests/pretend/cards.py): a
kernel that is launched while another card is the current one is an error, and `log` has launches,
allocations, copies, events and waits in their order, each with its card and stream.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from msa_kernels import attend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from tests.pretend import cards as cards_module
from tests.pretend.cards import Cards, Stream, WrongCardError

ROOT = Path(__file__).parents[2]
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


class Done(NamedTuple):
    """What was done: a launch, sync, copy, alloc, record or wait (of an event by a stream), ask (of
    the driver), capture or captured (by a graph, in place of a launch)."""

    kind: str
    what: str
    card: int
    stream: Stream | None


class Counts:
    """What was done since counting began; `where` of each kind counts lines of the project."""

    def __init__(self) -> None:
        self.where: dict[str, Counter] = {"launch": Counter(), "sync": Counter(), "copy": Counter()}
        self.log: list[Done] = []

    def add(self, kind: str, what: str, count: int, card: int, stream: Stream | None) -> None:
        what = f"{_site()} {what}"
        self.log += [Done(kind, what, card, stream)] * count
        if kind in self.where:
            self.where[kind][what] += count

    def elsewhere(self, card: int) -> list[Done]:
        """What was done on, or asked of, another card."""
        return [each for each in self.log if each.card != card]

    def kinds(self) -> set[str]:
        return {each.kind for each in self.log}

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
_cards: Cards | None = None


@contextlib.contextmanager
def counting() -> Iterator[Counts]:
    """Counts what runs inside, which nests in nothing."""
    global _counts
    _counts = found = Counts()
    try:
        yield found
    finally:
        _counts = None


def _note(kind: str, what: str, count: int = 1, *, card: int, stream: Stream | None = None) -> None:
    if kind == "launch" and _cards.thread.capturing is not None:
        kind = "captured"
    if _counts is not None:
        _counts.add(kind, what, count, card, stream or _cards.stream(card))


def _wait(what: str, card: int, count: int = 1) -> None:
    """The host waits for the current stream of a card."""
    stream = _cards.stream(card)
    for _ in range(count):
        _cards.waited(stream.reached(), what, card, stream)


def _site() -> str:
    """The innermost line of the project that is at work."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PRODUCT):
            return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "test"


class Pretended(torch.Tensor):
    """A tensor of the CPU, `held`, that says it lies on a card.

    To torch's C++ it lies on "meta", with the card's number: a torch built without CUDA cannot
    differentiate a CUDA tensor.
    """

    held: torch.Tensor
    card: int

    @staticmethod
    def __new__(cls, held: torch.Tensor, card: int = 0):
        # A view of what was made outside of inference mode is no inference tensor inside of it.
        with torch.inference_mode(held.is_inference()):
            return torch.Tensor._make_wrapper_subclass(
                cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
                dtype=held.dtype, device=torch.device("meta", card), requires_grad=False,
            )  # fmt: skip

    def __init__(self, held: torch.Tensor, card: int = 0):
        self.held, self.card = held, card

    __torch_function__ = torch._C._disabled_torch_function_impl

    device = property(lambda self: torch.device("cuda", self.card))
    get_device = property(lambda self: lambda: self.card)
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
    card = _card_of(kwargs.get("device"), pretended)
    name = func._schema.name.split("::")[1]
    _refuse_two_cards(func, name, pretended)
    plain = [x for x in given if not isinstance(x, Pretended)]
    if plain and not func.is_view:
        _cards.look(plain, lambda: f"{func} at {_site()}")
    if func.namespace == "msa_kernels" and pretended:
        _refuse_mixed(func, plain, card)
        with _Everything():  # the real launches; their results are not computed
            func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
    elif name in ("_to_copy", "copy_"):
        _note_copy(name, args, kwargs)
    elif card is not None or pretended:
        _note_operation(func, name, args, kwargs, plain, card)
    if name == "_to_copy" and _stays(args[0], kwargs, card):
        return Pretended(args[0].held, card)
    on_cpu = dict(kwargs)
    if kwargs.get("device") is not None and card is not None:
        on_cpu["device"] = torch.device("cpu")
    if kwargs.get("pin_memory"):
        on_cpu["pin_memory"] = False
    back = {id(x.held): x for x in pretended}
    ours = {id(x) for x in plain}
    real_args, real_kwargs = tree_map(
        lambda x: x.held if isinstance(x, Pretended) else x, (args, on_cpu)
    )
    compute = _IN_TORCH.get(name, func) if func.namespace == "msa_kernels" else func
    found = compute(*real_args, **real_kwargs)
    if card is not None or pretended:
        _take_place(func, name, args, kwargs, found, card)
        graph = _cards.thread.capturing
        if graph is not None and not func.is_view:
            graph.add(compute, real_args, real_kwargs, found)

    def wrapped(x):
        if not isinstance(x, torch.Tensor) or isinstance(x, Pretended) or id(x) in ours:
            return x
        if id(x) in back:
            return back[id(x)]
        return Pretended(x, card) if card is not None else x

    return tree_map(wrapped, found)


def _card_of(asked, pretended: list) -> int | None:
    """Where an operation's result lies; None: on the CPU."""
    if asked is None:
        return pretended[0].card if pretended else None
    asked = torch.device(asked)
    if asked.type == "cuda":
        return _cards.index(asked)
    # Torch's C++ makes its own small tensors where the others seem to lie.
    return asked.index if asked.type == "meta" else None


def _refuse_two_cards(func, name: str, pretended: list) -> None:
    if len({x.card for x in pretended}) > 1 and name != "copy_":
        where = [str(x.device) for x in pretended]
        raise WrongCardError(f"{func} at {_site()}: tensors of {where}")


@functools.cache
def _changed(func) -> tuple[int, ...]:
    """Places of the arguments that an operation writes to."""
    arguments = enumerate(func._schema.arguments)
    return tuple(i for i, x in arguments if x.alias_info is not None and x.alias_info.is_write)


def _take_place(func, name: str, args: tuple, kwargs: dict, found, card: int | None) -> None:
    """The work's place in its stream, and the memory it reads and writes."""
    if func.is_view or name in ("detach", "alias", "lift_fresh", "_unsafe_view"):
        return
    given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Pretended)]
    changed = tree_flatten([args[place] for place in _changed(func) if place < len(args)])[0]
    writes = [x.held for x in changed if isinstance(x, Pretended)]
    reads = [x.held for x in given if not any(x.held is y for y in writes)]
    known = {x.held.untyped_storage().data_ptr() for x in given}
    results = [x for x in tree_flatten(found)[0] if isinstance(x, torch.Tensor)]
    fresh = [x for x in results if x.untyped_storage().data_ptr() not in known]
    # What leaves a card does so in that card's stream.
    at = given[-1].card if given and (card is None or name in ("_to_copy", "copy_")) else card
    stream, what = _cards.stream(at), lambda: f"{func} at {_site()}"
    if name in FREE:
        reads = []  # the host's part alone
    number = _cards.work(stream, what, reads, writes, fresh if card is not None else ())
    if name in ("_to_copy", "copy_"):
        _end_copy(name, args, kwargs, found, stream, number)
    if fresh and card is not None:
        _note("alloc", name, card=card)


def _end_copy(
    name: str, args: tuple, kwargs: dict, found: torch.Tensor, stream: Stream, number: int
) -> None:
    to, source = _ends(name, args, kwargs)
    if to is not None and source is not None:
        return
    if _waits(name, args, kwargs):
        _cards.host[stream] = number
    elif to is None:
        _cards.arrives(args[0] if name == "copy_" else found, stream, number)


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


def _ends(name: str, args: tuple, kwargs: dict) -> tuple[int | None, int | None]:
    """Cards that a copy goes to, and comes from; None: the CPU."""
    given = args[: 2 if name == "copy_" else 1]
    *to, source = (x.card if isinstance(x, Pretended) else None for x in given)
    if name == "copy_":
        return to[0], source
    return _card_of(kwargs.get("device"), [x for x in given if isinstance(x, Pretended)]), source


def _note_copy(name: str, args: tuple, kwargs: dict) -> None:
    to, source = _ends(name, args, kwargs)
    if to is not None and source is not None:
        if to != source:
            _note("copy", "between cards", card=source)
        elif name == "copy_" or not _same(args[0], kwargs):
            _note("launch", name, card=to)
    elif to is not None or source is not None:
        way = "to the device" if to is not None else "to the host"
        at = to if to is not None else source
        _note("copy", way, card=at)
        if _waits(name, args, kwargs):
            _wait(f"copy {way}", at)


def _waits(name: str, args: tuple, kwargs: dict) -> bool:
    """Of a copy: whether the host waits where it leaves, or comes to, the host."""
    given = args[2] if name == "copy_" and len(args) > 2 else kwargs.get("non_blocking", False)
    return not given


def _same(x: torch.Tensor, wanted: dict) -> bool:
    """Whether `x.to(...)` asks for what x is already: torch returns x, and copies nothing."""
    return wanted.get("dtype") in (None, x.dtype) and wanted.get("memory_format") is None


def _stays(x: torch.Tensor, wanted: dict, card: int | None) -> bool:
    return isinstance(x, Pretended) and x.card == card and _same(x, wanted)


def _note_operation(
    func, name: str, args: tuple, kwargs: dict, plain: list, card: int | None
) -> None:
    if card is None:  # told to lie on the CPU: of what a card has, only the form is asked
        return
    if name in INDEXING:
        index = [x for x in args[1] if isinstance(x, torch.Tensor)]
        moved = [x for x in index if not isinstance(x, Pretended)]
        if moved and isinstance(args[0], Pretended):  # torch uploads them itself, and waits
            _note("copy", "index to the device", len(moved), card=card)
            _wait("index to the device", card, len(moved))
            plain = [x for x in plain if not any(x is y for y in moved)]
        if any(x.dtype in (torch.bool, torch.uint8) for x in index):
            _wait(f"{name} by a mask", card)
    # A number of the CPU is read by the host, and passed on.
    _refuse_mixed(func, [x for x in plain if x.dim() > 0 and not x.is_meta], card)
    if name in WAITS:
        _wait(name, card)
    if name == "repeat_interleave" and "output_size" not in kwargs:
        _wait(name, card)
    if name not in FREE and not func.is_view:
        _note("launch", name, card=card)


def _refuse_mixed(func, plain: list, card: int) -> None:
    if plain:
        where = f"tensors of the CPU beside cuda:{card}: {[tuple(x.shape) for x in plain]}"
        raise MixedDevicesError(f"{func} at {_site()}: {where}")


def _launch(kernel, *args, grid, warmup=False, **options) -> None:
    """In the place of Triton's compiler: a kernel's launch, with the host's real arguments."""
    tensors = [x for x in (*args, *options.values()) if isinstance(x, torch.Tensor)]
    launched(f"Triton's {kernel.fn.__name__}", tensors)


def launched(what: str, tensors: list[torch.Tensor]) -> None:
    """A kernel of Triton's, which runs on the current card, whatever its tensors lie on."""
    card = _cards.thread.card
    _refuse_mixed(what, [x for x in tensors if not _on_device(x)], card)
    if wrong := {str(x.device) for x in tensors if x.card != card}:
        raise WrongCardError(f"{what} at {_site()} is launched on cuda:{card}: tensors of {wrong}")
    _cards.work(_cards.stream(), lambda: f"{what} at {_site()}", [x.held for x in tensors])
    _note("launch", what, card=card)


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
        return made.to(torch.device("cuda", _cards.index(device))) if wanted else made

    def new_tensor(self, data, *, dtype=None, device=None, **options):
        options["dtype"], options["device"] = dtype or self.dtype, device or self.device
        return tensor(data, **options)

    def tolist(self):
        if not isinstance(self, Pretended):
            _cards.look([self], lambda: f"tolist at {_site()}")
            return to_list(self)
        _note("copy", "to the host", card=self.card)
        _wait("tolist", self.card)
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
        name, pretended = "scaled_dot_product_attention", [x for x in given if _on_device(x)]
        _refuse_mixed(name, [x for x in given if not _on_device(x)], pretended[0].card)
        _refuse_two_cards(name, name, given)
        stream, held = _cards.stream(q.card), [x.held for x in given]
        _note("launch", name, card=q.card)
        kwargs = {**options, "attn_mask": held[3] if len(held) > 3 else None}
        found = fused(*held[:3], **kwargs)
        _cards.work(stream, lambda: name, held, fresh=[found])
        if _cards.thread.capturing is not None:
            _cards.thread.capturing.add(fused, tuple(held[:3]), kwargs, found)
        return Pretended(found, q.card)

    def in_mode(run):
        def work(self):
            with _Everything():
                run(self)

        return work

    from triton.runtime import jit

    return [
        *cards_module.patches(_cards),
        # Torch's dispatcher asks another thread for nothing that this one has entered.
        mock.patch.object(threading.Thread, "run", in_mode(threading.Thread.run)),
        mock.patch.object(torch, "tensor", tensor),
        mock.patch.object(torch.Tensor, "new_tensor", new_tensor),
        mock.patch.object(torch.Tensor, "tolist", tolist),
        mock.patch.object(torch.Tensor, "pin_memory", lambda self, *_: self.clone()),
        mock.patch.object(torch.Tensor, "record_stream", _record_stream),
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


def _record_stream(x: torch.Tensor, stream: Stream) -> None:
    _note("keep", "until a stream has used it", card=x.card, stream=stream)


@contextlib.contextmanager
def pretended_cuda(card: int = 0) -> Iterator[torch.device]:
    """The card, to make tensors on; cuda:0 is the current one, whichever it is. Patches torch for
    the whole process: tests of one room that use it keep to themselves, as xdist's workers do."""
    if torch.version.cuda is not None:
        raise RuntimeError("torch is built for CUDA here: nothing needs to be pretended")
    global _cards
    _cards = Cards(_note)
    with contextlib.ExitStack() as stack:
        for patch in _patches():
            stack.enter_context(patch)
        stack.enter_context(_Everything())
        yield torch.device("cuda", card)


def on_device(module: torch.nn.Module, card: int = 0) -> torch.nn.Module:
    """The module with its parameters and buffers on a card, in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = Pretended(parameter.data, card)
                part._parameters[name] = torch.nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = Pretended(buffer, card)
    return module
