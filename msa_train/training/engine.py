"""DeepSpeed, here and nowhere else: ZeRO, precision, accumulation, clipping, its state on disk."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from msa_train.config import TrainingConfig
from msa_train.errors import CheckpointError
from msa_train.model.megatron import MSAModel
from msa_train.parallel.cpu import prepare_deepspeed
from msa_train.parallel.groups import DeepSpeedGroups, sum_over_tensor_ranks


class Engine:
    """A model under DeepSpeed. `backward` takes this rank's share of a global mean."""

    def __init__(self, model: MSAModel, config: TrainingConfig):
        prepare_deepspeed()
        deepspeed = _import_deepspeed()
        sum_over_tensor_ranks(model.partial_gradient_parameters())
        self.model = model
        self._router_only = False
        for name, parameter in model.named_parameters():
            if not is_router(name):
                parameter.register_hook(self._freeze)
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=_optimizer(model, config),
            config=_settings(config),
            mpu=DeepSpeedGroups,
            dist_init_required=False,
        )

    @property
    def device(self) -> torch.device:
        return self._engine.device

    def __call__(self, *args: Any) -> Any:
        return self._engine(*args)

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
        counts = torch.tensor(count, device=self.device)
        group = DeepSpeedGroups.get_data_parallel_group()
        dist.all_reduce(counts, op=dist.ReduceOp.MAX, group=group)
        return int(counts)

    def step(self) -> None:
        """Change the weights by the gradients added since the last step."""
        self._engine.step()

    @property
    def skipped(self) -> bool:
        """Whether the last step changed nothing, because a gradient was not finite on some rank."""
        return bool(self._engine.optimizer.overflow)

    def set_learning_rate(self, rate: float, router_only: bool = False) -> None:
        """For the next step. router_only: every other weight stays as it is."""
        self._router_only = router_only
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate if group["router"] or not router_only else 0.0

    def _freeze(self, gradient: Tensor) -> Tensor:
        """The gradient of a weight outside the router: zero while the router trains alone."""
        return torch.zeros_like(gradient) if self._router_only else gradient

    def gradient_norm(self) -> float | None:
        """Global norm before clipping; None where DeepSpeed does not know it (stage 0)."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, float32 weight) of this tensor rank; every data-parallel rank must call."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self.model.named_parameters():
            weight = None
            if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
                weight = safe_get_full_fp32_param(parameter)
            weight = parameter if weight is None else weight
            shape = getattr(parameter, "ds_shape", parameter.shape)
            yield name, weight.detach().to("cpu", torch.float32).clone().view(shape)

    def save(self, folder: Path, tag: str) -> None:
        self._engine.save_checkpoint(str(folder), tag=tag, save_latest=False)

    def load(self, folder: Path, tag: str) -> None:
        found, _ = self._engine.load_checkpoint(str(folder), tag=tag)
        if found is None:  # which DeepSpeed only logs
            raise CheckpointError(f"{folder / tag}: DeepSpeed found no state of this layout in it")


def _import_deepspeed():
    warnings.filterwarnings("ignore", module=r"deepspeed\.")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    return deepspeed


def _optimizer(model: MSAModel, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW. Matrices decay, norms and the gate's scalars do not. Every step sets its rate."""
    groups = []
    for router in (False, True):
        weights = [p for name, p in model.named_parameters() if is_router(name) == router]
        for decay, dims in ((config.weight_decay, (2,)), (0.0, (0, 1))):
            chosen = [p for p in weights if p.dim() in dims]
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "router": router})
    kind = _GuardedAdamW if config.zero_stage == 0 else torch.optim.AdamW
    return kind(groups, lr=0.0, betas=config.betas, fused=True)


def is_router(name: str) -> bool:
    """Whether a weight belongs to a router: its projections and its gate."""
    return ".router_" in name


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


def _settings(config: TrainingConfig) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,  # `step` ends a step, after any number of backwards
        "gradient_clipping": config.clip,
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_optimization": {"stage": config.zero_stage},
        "steps_per_print": 1 << 30,
    }
