"""What a checkpoint holds of every weight, by name, whatever ranks and ZeRO stage wrote it.

The weights stand in full precision in our own files. The optimizer's moments stand in DeepSpeed's,
cut into flat pieces as its ranks had them; those are mapped, not read, and put together for one
weight at a time. DeepSpeed's own converter would write all of them to the disk twice, in one
process that everybody waits for, and be told in patterns how tensor parallelism split each weight,
which model/weights.py knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from msa_train.errors import CheckpointError
from msa_train.model.config import ModelConfig
from msa_train.model.weights import resharded, weight_maps

MOMENTS = ("exp_avg", "exp_avg_sq")
Pieces = dict[str, list[dict[str, Tensor]]]  # weight -> moments of its flat pieces, in their order


@dataclass(frozen=True)
class RankLayout:
    """How the ranks of a run share its weights and the optimizer's state."""

    ranks: int
    zero_stage: int
    tensor_parallel: int
    document_parallel: int = 1

    @property
    def data_parallel(self) -> int:
        """Ranks that have different shares of the optimizer's state."""
        return self.ranks // self.tensor_parallel

    @property
    def replicas(self) -> int:
        """Groups of ranks that read different samples."""
        return self.data_parallel // self.document_parallel

    def __str__(self) -> str:
        parallel = {"tensor": self.tensor_parallel, "document": self.document_parallel}
        more = "".join(f", {kind} parallel {n}" for kind, n in parallel.items() if n > 1)
        return f"{self.ranks} rank{'s' * (self.ranks > 1)} (ZeRO-{self.zero_stage}{more})"


class StoredStates:
    """Weights and moments of a checkpoint that another layout wrote, as this rank holds them.

    learned: names of what the optimizer has, in its order. rank, size: of tensor parallelism, now.
    Raises CheckpointError where DeepSpeed's files are missing, or are not what they are known as.
    """

    def __init__(
        self,
        folder: Path,
        layout: RankLayout,
        config: ModelConfig,
        learned: Sequence[str],
        rank: int,
        size: int,
    ):
        self._maps = {each.megatron: each for each in weight_maps(config)}
        self._place = config, rank, size
        self._cut_anew = layout.tensor_parallel != size  # or this rank's parts are all it needs
        parts = range(layout.tensor_parallel) if self._cut_anew else [rank]
        paths = [folder / f"weights-tp{part}.safetensors" for part in parts]
        self._weights = [safe_open(path, framework="pt") for path in paths]
        self.step: Tensor | None = None  # of the optimizer; None: it has not made one
        try:
            self._pieces = [self._read(folder, layout, part, learned) for part in parts]
        except (OSError, KeyError, IndexError, RuntimeError) as error:
            raise CheckpointError(
                f"{folder} cannot be read by other ranks than those that wrote it, {layout}: "
                f"{error}; continue it with those"
            ) from error

    def weight(self, name: str) -> Tensor:
        """This rank's part, float32."""
        return self._part(name, [file.get_tensor(name) for file in self._weights])

    def moments(self, name: str) -> dict[str, Tensor]:
        """This rank's part of each of MOMENTS, float32."""
        return {key: self._part(name, self._moment(name, key)) for key in MOMENTS}

    def _part(self, name: str, parts: list[Tensor]) -> Tensor:
        if not self._cut_anew:
            return parts[0]
        return resharded(self._maps[name], parts, *self._place).contiguous()

    def _moment(self, name: str, key: str) -> list[Tensor]:
        """Of each tensor-parallel rank that wrote."""
        shapes = [file.get_slice(name).get_shape() for file in self._weights]
        return [
            torch.cat([piece[key].flatten() for piece in pieces[name]]).view(shape)
            for pieces, shape in zip(self._pieces, shapes, strict=True)
        ]

    def _read(self, folder: Path, layout: RankLayout, part: int, learned: Sequence[str]) -> Pieces:
        """Of one tensor-parallel rank."""
        found: Pieces = {}
        for name, moments, step in _all_pieces(folder, layout, part, learned):
            found.setdefault(name, []).append(moments)
            if self.step is None:
                self.step = step
            elif float(step) != float(self.step):
                raise RuntimeError(
                    f"{name} has seen {float(step)} steps, others {float(self.step)}"
                )
        if self.step is not None and (missing := set(learned) - set(found)):
            raise RuntimeError(f"nothing of {min(missing)}")
        return found


def _all_pieces(
    folder: Path, layout: RankLayout, part: int, learned: Sequence[str]
) -> Iterator[tuple[str, dict[str, Tensor], Tensor]]:
    """(weight, moments of a piece of it, step), by the data-parallel ranks' order."""
    if layout.zero_stage == 0:
        states = _mapped(folder, f"mp_rank_{part:02d}_model_states.pt")["optimizer"]["state"]
        for number, name in enumerate(learned if states else ()):
            yield name, {key: states[number][key] for key in MOMENTS}, states[number]["step"]
        return
    shapes = []
    if layout.zero_stage == 3:
        name = f"zero_pp_rank_0_mp_rank_{part:02d}_model_states.pt"
        shapes = _mapped(folder, name)["param_shapes"]
    for rank in range(layout.data_parallel):
        names = f"*zero_pp_rank_{rank}_mp_rank_{part:02d}_optim_states.pt"  # bf16_ before it or not
        state = _mapped(folder, names)["optimizer_state_dict"]
        if layout.zero_stage == 3:
            states = state["optimizer_state_dict"]["state"]
            cuts = [list(_shares(group, layout.data_parallel, rank)) for group in shapes]
        else:
            states = state["base_optimizer_state"]["state"]
            groups = state["param_slice_mappings"]
            cuts = [[(n, at.start, at.numel) for n, at in group.items()] for group in groups]
        for group, pieces in enumerate(cuts if states else ()):
            flat = states[group]
            for name, start, count in pieces:
                yield name, {k: flat[k].narrow(0, start, count) for k in MOMENTS}, flat["step"]


def _shares(shapes: dict[str, torch.Size], ranks: int, rank: int) -> Iterator[tuple[str, int, int]]:
    """(weight, where its share begins, how long that is without padding) of a ZeRO-3 rank."""
    start = 0
    for name, shape in shapes.items():
        whole = math.prod(shape)
        share = -(-whole // ranks)
        yield name, start, max(0, min(share, whole - rank * share))
        start += share


def _mapped(folder: Path, pattern: str) -> dict[str, Any]:
    """A file of DeepSpeed's: its tensors are read when they are used. It pickles classes of its
    own, and is the one that loads them on any resume."""
    (path,) = sorted(folder.glob(pattern)) or [folder / pattern]
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)
