"""DeepSpeed, here and nowhere else: ZeRO, precision, accumulation, clipping, its state on disk."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from msa_train.config import TrainingConfig
from msa_train.errors import CheckpointError, ConfigError
from msa_train.model.megatron import MSAModel
from msa_train.model.weights import Part, part_of
from msa_train.parallel.cpu import prepare_deepspeed
from msa_train.parallel.groups import DeepSpeedGroups, sum_over_tensor_ranks
from msa_train.stages import Trains, trained_alone
from msa_train.training import swap_files
from msa_train.training.planner.memory import BUCKET, reduce_bucket
from msa_train.training.stored_states import MOMENTS, StoredStates

Cut = tuple[Parameter, int, int, int]  # a weight; where a piece of it begins in a flat share, where
# in the weight itself, and its length
_OWN = ("betas", "weight_decay")  # settings of a group that DeepSpeed takes from a checkpoint


class Engine:
    """A model under DeepSpeed. `backward` takes this rank's share of a global mean.

    trains: what the stages of a run train. Where that is one part alone, nothing else has gradients
    or an optimizer's state, and its weights stay what they were to the last bit.
    """

    def __init__(
        self, model: MSAModel, config: TrainingConfig, trains: Collection[Trains] = ("all",)
    ):
        prepare_deepspeed()
        deepspeed = _import_deepspeed()
        sum_over_tensor_ranks(model.partial_gradient_parameters())
        self.model = model
        self._trains: Trains = "all"
        self._kept: dict[str, Tensor] = {}  # in full precision, which DeepSpeed's narrow copy lacks
        alone = trained_alone(trains)
        for name, parameter in model.named_parameters():
            part = part_of(name, model.model)
            if alone not in (None, part):
                self._kept[name] = parameter.detach().to("cpu", torch.float32, copy=True)
                parameter.requires_grad_(False)
            else:
                parameter.register_hook(partial(self._freeze, part))
        optimizer = _optimizer(model, config, "reader" in trains)
        names = {parameter: name for name, parameter in model.named_parameters()}
        self._stage = config.zero_stage
        self._learned = {p: names[p] for group in optimizer.param_groups for p in group["params"]}
        _check_zero(config)
        settings = _settings(config, reduce_bucket(p.numel() for p in model.parameters()))
        if config.nvme_path is not None:
            self._give_folder(settings, config.nvme_path)
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=settings,
            mpu=DeepSpeedGroups,
            dist_init_required=False,
        )

    def _give_folder(self, settings: dict[str, Any], path: Path) -> None:
        """One of this rank's own for the optimizer's states, in DeepSpeed's settings."""
        ranks = DeepSpeedGroups.get_data_parallel_world_size()
        shares = [-(-parameter.numel() // ranks) for parameter in self._learned]
        folder = swap_files.own_folder(path, settings.get("aio", {}), shares)
        zero = settings["zero_optimization"]
        zero["offload_optimizer"] = zero["offload_optimizer"] | {"nvme_path": str(folder)}

    @property
    def device(self) -> torch.device:
        return self._engine.device

    def __call__(self, *args: Any) -> Any:
        return self._engine(*args)

    @property
    def keeps_graphs(self) -> bool:
        """Whether there may be another forward and backward pass between a forward and its backward
        pass: ZeRO-3 then loses gradients of the embedding."""
        return self._engine.zero_optimization_stage() < 3

    def backward(self, loss: Tensor, scaled: bool = False) -> None:
        """Add the gradients of this rank's share of a global loss; any number of times in a step.

        DeepSpeed takes the mean over ranks, and losses are divided by global counts already: so the
        loss is scaled to turn that mean back into a sum. scaled: it has been, since it was made of
        gradients of a loss that went through here before.
        """
        self._engine.backward(
            loss if scaled else loss * DeepSpeedGroups.get_data_parallel_world_size()
        )

    def max_over_ranks(self, count: int) -> int:
        """The largest count of all data-parallel ranks, each of which must call."""
        if DeepSpeedGroups.get_data_parallel_world_size() == 1:
            return count
        counts = torch.tensor(count, device=self.device)
        group = DeepSpeedGroups.get_data_parallel_group()
        dist.all_reduce(counts, op=dist.ReduceOp.MAX, group=group)
        return int(counts)

    def step(self) -> None:
        """Change the weights by the gradients added since the last step."""
        if self._stage == 3 and self._engine.optimizer.offload_optimizer:
            # Weights without a gradient learn from zeros too, not from what an older step left.
            learned = (parameter.ds_id for parameter in self._learned)
            self._engine.optimizer._offload_boundary_param_ids.update(learned)
        self._engine.step()
        self._forget_gradients()
        swap_files.check_room()

    def discard(self) -> None:
        """End the step without changing the weights; every rank must call.

        Its gradients go the way of those that are not finite, in every layout: DeepSpeed clears
        them where its optimizer, asked for the next loss scale, has found an overflow.
        """
        optimizer = self._engine.optimizer

        def overflow(*_: bool) -> None:
            optimizer.overflow = True

        asked = "_update_scale" if self._stage else "step"
        setattr(optimizer, asked, overflow)
        try:
            self._engine.step()
        finally:
            delattr(optimizer, asked)  # the class's own again
        self._forget_gradients()

    def _forget_gradients(self) -> None:
        """ZeRO-3, and ZeRO-1 and 2 on the host, keep them: a weight that has none in the next step,
        or none of its first sample, would learn from those of the last."""
        optimizer = self._engine.optimizer
        if self._stage == 3:
            optimizer.grad_partitions_flat_buffer.zero_()
        elif self._stage and optimizer.cpu_offload:
            held = [share.grad for share in optimizer.single_partition_of_fp32_groups]
            for gradient in (*held, *optimizer.accumulated_grads_in_cpu.values()):
                gradient.zero_()

    @property
    def skipped(self) -> bool:
        """Whether the last step changed nothing: a gradient was not finite on some rank, or it was
        discarded. Not after `load` or `adopt`."""
        return bool(self._engine.optimizer.overflow)

    def set_learning_rate(self, rate: float, trains: Trains = "all") -> None:
        """For the next step. trains: every other weight stays as it is."""
        self._trains, self.model.reader_alone = trains, trains == "reader"
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate if trains == "all" or trains in group["parts"] else 0.0

    def _freeze(self, part: Part, gradient: Tensor) -> Tensor:
        """The gradient of a weight: zero while another part of the model trains alone."""
        return gradient if self._trains in ("all", part) else torch.zeros_like(gradient)

    def gradient_norm(self) -> float | None:
        """Global norm before clipping; None where DeepSpeed does not know it (stage 0)."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, float32 weight) of this tensor rank; every data-parallel rank must call."""
        from deepspeed.utils import safe_get_full_fp32_param

        with self._states_mapped():
            for name, parameter in self.model.named_parameters():
                if name in self._kept:
                    yield name, self._kept[name]
                    continue
                weight = None
                if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
                    weight = safe_get_full_fp32_param(parameter)
                weight = parameter if weight is None else weight
                shape = getattr(parameter, "ds_shape", parameter.shape)
                yield name, weight.detach().to("cpu", torch.float32).clone().view(shape)

    def keep(self, read: Callable[[str], Tensor]) -> None:
        """Weights that nothing trains become those of a checkpoint, by `read`: what the run started
        from may be another today."""
        for name in self._kept:
            self._kept[name] = read(name)

    def save(self, folder: Path, tag: str, write: Callable[[Any, Path], None]) -> None:
        """Every rank must call. write: takes each of DeepSpeed's states and where its file is to
        be, in a folder that is there."""
        self._engine.checkpoint_engine = _handing_over(write)
        with self._states_mapped():
            self._engine.save_checkpoint(str(folder), tag=tag, save_latest=False)

    def load(self, folder: Path, tag: str) -> None:
        """What a checkpoint holds, but for the settings: those stay this engine's. Not where the
        optimizer's states are in files: `adopt` does that."""
        optimizer = self._engine.optimizer
        own = [{name: group[name] for name in _OWN} for group in optimizer.param_groups]
        found, _ = self._engine.load_checkpoint(str(folder), tag=tag)
        if found is None:  # which DeepSpeed only logs
            raise CheckpointError(f"{folder / tag}: DeepSpeed found no state of this layout in it")
        for group, settings in zip(optimizer.param_groups, own, strict=True):
            group |= settings
        optimizer.clip_grad = self._engine.gradient_clipping()
        optimizer.overflow = False

    def _states_mapped(self) -> AbstractContextManager[None]:
        """While the optimizer's states are read."""
        swaps = self._engine.zero_nvme_offload_optimizer()
        return swap_files.states_mapped(self._engine.optimizer) if swaps else nullcontext()

    @property
    def learned(self) -> list[str]:
        """Names of what the optimizer changes, in its order."""
        return list(self._learned.values())

    def adopt(self, stored: StoredStates) -> None:
        """Go on from what another layout wrote; the settings stay this engine's.

        A state of this layout is filled, one weight after another, of which this rank keeps its
        share, and DeepSpeed loads it; of ZeRO-3 one group after another.
        """
        optimizer = self._engine.optimizer
        if self._stage == 0:
            self._adopt_whole(stored)
        elif self._stage < 3:
            groups, flat = optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups
            shares = zip(map(_cuts, groups), map(len, flat), strict=True)
            filled = [self._filled(stored, *share) for share in shares]
            state = optimizer.state_dict()
            state["base_optimizer_state"]["state"] = _moments(filled, stored.step)
            state["single_partition_of_fp32_groups"] = [each["weight"] for each in filled]
            rank = DeepSpeedGroups.get_data_parallel_rank()
            optimizer.load_state_dict({rank: state}, load_from_fp32_weights=True)
            optimizer.update_lp_params()
            self._adopt_kept(stored)
        else:
            optimizer.checkpoint_event_prologue()
            if optimizer.swap_optimizer:  # else it goes on swapping those that are there
                optimizer.optimizer_swapper.purge_state()
            optimizer.optimizer.state.clear()
            for number in range(len(optimizer.fp16_groups)):
                self._adopt_group(stored, number)
            self._adopt_kept(stored)
            optimizer.checkpoint_event_epilogue()
        optimizer.overflow = False

    def _adopt_whole(self, stored: StoredStates) -> None:
        """Without ZeRO: every rank has all of its tensor-parallel part."""
        optimizer = self._engine.optimizer
        for parameter, name in self._learned.items():
            parameter.data.copy_(stored.weight(name))
        if stored.step is not None:
            found = enumerate(self._learned.values())
            states = {i: stored.moments(name) | {"step": stored.step.clone()} for i, name in found}
            optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
        self._adopt_kept(stored)

    def _adopt_group(self, stored: StoredStates, number: int) -> None:
        """What this rank of ZeRO-3 has of a group, which may be in files before and afterwards."""
        optimizer = self._engine.optimizer
        flat = optimizer.fp32_partitioned_groups_flat[number]
        length = optimizer.fp16_partitioned_groups_flat_numel[number]
        filled = self._filled(stored, _shares(optimizer.fp16_groups[number]), length)
        swaps = optimizer._swappable_optimizer_subgroup(number)
        if swaps:
            optimizer._optimizer_states_and_gradient_swap_in(number)
        flat.data.copy_(filled["weight"])
        for states in _moments([filled], stored.step).values():
            moved = {key: value.to(flat.device) for key, value in states.items()}
            optimizer.optimizer.state[flat] = moved
        optimizer._reassign_or_swap_out_partitioned_parameters(number)
        if swaps:
            optimizer._optimizer_states_and_gradient_swap_out(number)

    def _adopt_kept(self, stored: StoredStates) -> None:
        """What nothing trains; `keep` takes it in full precision."""
        for name, parameter in self.model.named_parameters():
            if name not in self._kept:
                continue
            weight = stored.weight(name)
            if self._stage < 3:
                parameter.data.copy_(weight)
                continue
            ((_, here, there, count),) = _shares([parameter])
            share = weight.flatten()[there : there + count]
            parameter.ds_tensor.data[here : here + count].copy_(share)

    def _filled(self, stored: StoredStates, cuts: Iterable[Cut], length: int) -> dict[str, Tensor]:
        """Weights and moments of this rank's share of a group, on the CPU."""
        share = {key: torch.zeros(length) for key in ("weight", *MOMENTS)}
        for parameter, here, there, count in cuts:
            name = self._learned[parameter]
            values = {"weight": stored.weight(name)}
            values |= {} if stored.step is None else stored.moments(name)
            for key, value in values.items():
                share[key][here : here + count] = value.flatten()[there : there + count]
        return share


def _cuts(group: list[Parameter]) -> Iterator[Cut]:
    """What a ZeRO-1 or ZeRO-2 rank has of a group's weights: the group is cut, wherever that is."""
    for parameter in group:
        if (mapping := parameter._hp_mapping) is not None:
            here, there = mapping.get_hp_fragment_address(), mapping.lp_fragment_address
            yield parameter, here.start, there.start, there.numel


def _shares(group: list[Parameter]) -> Iterator[Cut]:
    """What a ZeRO-3 rank has of a group's weights: an equal share of each, the last one padded."""
    here = 0
    for parameter in group:
        share = parameter.partition_numel()
        there = share * dist.get_rank(parameter.ds_process_group)
        yield parameter, here, there, max(0, min(share, parameter.ds_numel - there))
        here += share


def _moments(filled: list[dict[str, Tensor]], step: Tensor | None) -> dict[int, dict[str, Tensor]]:
    """The state of a torch optimizer with one tensor per group; each counts its steps by itself."""
    if step is None:
        return {}
    return {
        i: {key: each[key] for key in MOMENTS} | {"step": step.clone()}
        for i, each in enumerate(filled)
    }


def _handing_over(write: Callable[[Any, Path], None]):
    """What DeepSpeed saves through: states and files are its own, the writing is not."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    class HandingOver(TorchCheckpointEngine):
        def save(self, state_dict: Any, path: str) -> None:
            write(state_dict, Path(path))

    return HandingOver()


def _import_deepspeed():
    warnings.filterwarnings("ignore", module=r"deepspeed\.")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    return deepspeed


def _optimizer(
    model: MSAModel, config: TrainingConfig, reader_apart: bool
) -> torch.optim.Optimizer:
    """AdamW. Matrices decay, norms and the gate's scalars do not. Every step sets its rate.

    reader_apart: the reader has groups of its own, because a stage trains it alone.
    """
    together: list[tuple[Part, ...]] = [("reader", "encoder"), ("router",)]
    if reader_apart:
        together = [("encoder",), ("reader",), ("router",)]
    groups = []
    for parts in together:
        weights = [p for name, p in model.named_parameters() if part_of(name, model.model) in parts]
        for decay, dims in ((config.weight_decay, (2,)), (0.0, (0, 1))):
            chosen = [p for p in weights if p.dim() in dims and p.requires_grad]
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "parts": parts})
    kind = _GuardedAdamW if config.zero_stage == 0 else torch.optim.AdamW
    return kind(groups, lr=0.0, betas=config.betas, fused=True)


class _GuardedAdamW(torch.optim.AdamW):
    """AdamW that skips a step whose gradients are not finite, as DeepSpeed's ZeRO optimizers do."""

    overflow = False

    def step(self, closure: None = None) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
        broken = (~norm.isfinite()).float()
        dist.all_reduce(broken, op=dist.ReduceOp.MAX)  # a tensor-parallel rank sees only its part
        self.overflow = bool(broken)
        if not self.overflow:
            super().step(closure)


def _settings(config: TrainingConfig, bucket: int) -> dict[str, Any]:
    passed = dict(config.deepspeed)
    zero = {"reduce_bucket_size": bucket} | passed.pop("zero_optimization", {})
    return passed | {
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,  # `step` ends a step, after any number of backwards
        "gradient_clipping": config.clip,
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_optimization": zero | {"stage": config.zero_stage},
        "zero_force_ds_cpu_optimizer": False,  # AdamW is the same on a CPU, and needs no compiler
        "steps_per_print": 1 << 30,
    }


def check_deepspeed(config: TrainingConfig) -> None:
    """Raises ConfigError for training.deepspeed where DeepSpeed does not know a key, refuses its
    value, or could not do it on this machine."""
    if not config.deepspeed:
        return
    prepare_deepspeed()
    _import_deepspeed()
    _check_zero(config)
    if config.nvme_path is not None:
        swap_files.check(config.nvme_path, config.deepspeed.get("aio", {}))


def _check_zero(config: TrainingConfig) -> None:
    """What DeepSpeed itself says of its section."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = _settings(config, BUCKET)["zero_optimization"]
    try:
        DeepSpeedZeroConfig(**zero)
    except ValueError as error:
        first = error.errors()[0]  # pydantic's: where it is, and what is wrong
        place = ".".join(map(str, ("zero_optimization", *first["loc"])))
        raise ConfigError(f"training.deepspeed.{place}: DeepSpeed says: {first['msg']}") from error
