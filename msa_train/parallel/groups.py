"""Process groups: torch.distributed, Megatron's parallel_state, and DeepSpeed's view of it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.distributed.rendezvous import rendezvous

from msa_train.errors import FileError, MSAError, RankError
from msa_train.parallel.cpu import check_gpus, gpus, prepare_megatron
from msa_train.parallel.slots import replicas_of

T = TypeVar("T")
Outcome = tuple[T | None, MSAError | None]

# By how much torch's own timeouts come later than the watchdog's, which says who is stuck.
GRACE_S = 60


class DeepSpeedGroups:
    """The `mpu` that deepspeed.initialize asks: Megatron's groups under DeepSpeed's names.

    Names with `sequence_parallel` must be absent: DeepSpeed probes for them.
    """

    get_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_model_parallel_world_size = staticmethod(
        parallel_state.get_tensor_model_parallel_world_size
    )
    get_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group
    get_data_parallel_rank = staticmethod(parallel_state.get_data_parallel_rank)
    get_data_parallel_world_size = staticmethod(parallel_state.get_data_parallel_world_size)
    get_data_parallel_group = staticmethod(parallel_state.get_data_parallel_group)


def start(tensor_parallel: int, timeout_s: float, document_parallel: int = 1) -> None:
    """Join the process group that the launcher's environment names, and make Megatron's groups.

    Without a launcher this is a single rank, on the GPU LOCAL_RANK. Raises ConfigError when the
    ranks cannot be divided, or have no GPU each where there are some, RankError when one of them
    does not come.
    """
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1"}
    local = int(os.environ.setdefault("LOCAL_RANK", "0"))
    world = int(os.environ["WORLD_SIZE"])
    replicas_of(world, tensor_parallel, document_parallel)
    if gpus():
        check_gpus(local + 1, f"rank {local}")
        torch.cuda.set_device(local)  # before anything is made: it would lie on the first
    if not dist.is_initialized():
        backend = "nccl" if gpus() else "gloo"
        if world == 1 and "MASTER_ADDR" not in os.environ:
            alone = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
            dist.init_process_group(backend, **alone, timeout=timedelta(seconds=timeout_s))
        else:
            _join(backend, timeout_s)
    prepare_megatron()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor_parallel,
        distributed_timeout_minutes=(timeout_s + GRACE_S) / 60,
        create_gloo_process_groups=False,
    )


def _join(backend: str, timeout_s: float) -> None:
    try:
        store, rank, ranks = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("training", store),
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=timeout_s + GRACE_S),
        )
    except dist.DistError as error:
        own, world = os.environ["RANK"], os.environ["WORLD_SIZE"]
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RankError(
            f"rank {own} of {world} met no rank 0 at {where}, or not all the others, within "
            f"{timeout_s:.0f} s (training.timeout_s): {str(error).splitlines()[0]}"
        ) from error


def sum_over_tensor_ranks(parameters: list[torch.nn.Parameter]) -> None:
    """Sum the gradients of replicated parameters that act on sharded heads.

    DeepSpeed does not do what Megatron's finalize_model_grads does; without this their gradients
    are partial and training silently diverges. Register before deepspeed.initialize.
    """
    if parallel_state.get_tensor_model_parallel_world_size() == 1:
        return
    group = parallel_state.get_tensor_model_parallel_group()

    def reduce(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=group)
        return gradient

    for parameter in parameters:
        parameter.register_hook(reduce)


def of_rank_0(look: Callable[[], T]) -> T:
    """What rank 0 sees or does, told to every rank, all of which must call.

    Their views of a file system may differ for a moment. An error of a user is raised on all.
    """
    found: list[Any] = [outcome(look) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    return told(found[0])


def outcome(look: Callable[[], T]) -> Outcome[T]:
    """What it gives, or the error of a user's that it raises."""
    try:
        return look(), None
    except MSAError as error:
        return None, error
    except OSError as error:
        return None, FileError.of(error)


def told(found: Outcome[T]) -> T:
    """Of an outcome that all ranks are told."""
    value, error = found
    if error is not None:
        error.on_all_ranks = True
        raise error
    return value


def own_store(name: str) -> dist.Store:
    """A connection of one's own to the store that the ranks met at, under a prefix.

    A thread that waits at it keeps nobody else waiting.
    """
    return dist.PrefixStore(name, dist.distributed_c10d._get_default_store().clone())


def finish(exit_code: int, together: bool) -> None:
    """End this process at once: after gloo, interpreter exit aborts now and then.

    together: all ranks do. Rank 0, which keeps the store, then waits for those that still read it;
    otherwise nobody is waited for, as closing a group over NCCL may.
    """
    if together and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it is gone
            stream.flush()
    os._exit(exit_code)
