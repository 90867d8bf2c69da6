"""Checkpoints: DeepSpeed's state, every rank's own, and weights that need no DeepSpeed to read.

OUTPUT/checkpoints/step-000000500/state.json         where the run stands
                                 /config.yaml        the resolved settings
                                 /tokenizer/
                                 /weights-tp0.safetensors   float32, by Megatron name, one per
                                                     tensor-parallel rank
                                 /own-rank0.pt       random states and key queue of each rank
                                 /...                DeepSpeed's own files
                                 /seal.json          see msa_train.checkpoint_folders
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from data_pipeline import files
from data_pipeline.settings import StageData
from data_pipeline.shards.loader import LoaderState
from data_pipeline.tokenizer import Tokenizer
from msa_train import checkpoint_folders
from msa_train.config import Config, load_config_file
from msa_train.errors import CheckpointError, FileError, RankError
from msa_train.parallel.groups import DeepSpeedGroups, of_rank_0
from msa_train.stages import Schedule
from msa_train.training.best import Best
from msa_train.training.engine import Engine
from msa_train.training.last_words import of_error
from msa_train.training.meeting import Meeting
from msa_train.training.rank_files import RankFiles
from msa_train.training.resuming import Progress, changes
from msa_train.training.saying import say
from msa_train.training.stored_states import RankLayout, StoredStates

FOLDER, STATE = "checkpoints", "state.json"
_meetings = count()  # of this process: all ranks meet as often


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    loader: samples consumed, and those of each stage. wandb_id: to continue in the same chart.
    skipped: steps so far whose gradients were not finite. held_out: what held-out data gave before
    the first step (empty: not measured). spikes: of LossSpikes (empty: not looked for). best: the
    best checkpoint up to this one (None: there is none, or nobody asked).
    """

    step: int
    loader: LoaderState
    wandb_id: str | None
    ranks: int
    skipped: int
    held_out: dict[str, float]
    spikes: dict[str, Any] = field(default_factory=dict)
    best: Best | None = None

    @classmethod
    def read(cls, folder: Path) -> RunState:
        """Of a checkpoint."""
        stored = json.loads((folder / STATE).read_text())
        best = stored.pop("best", None)
        return cls(**stored, best=best and Best(**best))


def save(engine: Engine, config: Config, tokenizer: Tokenizer, state: RunState) -> Path:
    """Write a checkpoint; every rank must call. It appears whole or not at all."""
    return begin(engine, config, tokenizer, state, beside=False)()


def begin(
    engine: Engine, config: Config, tokenizer: Tokenizer, state: RunState, beside: bool
) -> Callable[[], Path]:
    """Take this rank's state; every rank must call, and then what is returned, which writes it,
    seals the folder when all have, and removes old ones.

    beside: that may be in another thread, while the training goes on; the state is copied before.
    What it raises is raised on all ranks: FileError, RankError.
    """
    folder, rank = config.path / FOLDER, dist.get_rank()
    partial = folder / checkpoint_folders.partial_name(state.step)
    of_rank_0(lambda: _start_folder(partial, config, tokenizer, state))
    written = RankFiles(partial, beside)
    engine.save(folder, partial.name, written.add_state)
    own = _random_states(engine.device) | {"queue": engine.model.queue.state_dict()}
    written.add_state(own, partial / f"own-rank{rank}.pt")
    writes = DeepSpeedGroups.get_data_parallel_rank() == 0
    weights = {name: weight for name, weight in engine.full_weights() if writes}
    if writes:
        part = DeepSpeedGroups.get_model_parallel_rank()
        written.add_weights(weights, partial / f"weights-tp{part}.safetensors")
    written.wait_for_copies()
    what = f"the checkpoint of step {state.step}"
    meeting = Meeting(f"save-{next(_meetings)}", what, config.training.timeout_s)
    skipped, keep = engine.skipped, config.training.keep_checkpoints

    def complete() -> Path:
        found, finite = _written_by_all(meeting, written, partial, weights)
        flaw = checkpoint_folders.SKIPPED if skipped else None
        flaw = flaw if finite else checkpoint_folders.NOT_FINITE
        target = meeting.of_rank_0(lambda: _seal(partial, state, found, flaw))
        _rotate(meeting, folder, keep, target)
        return target

    return complete


def _start_folder(partial: Path, config: Config, tokenizer: Tokenizer, state: RunState) -> None:
    """What is the same for all ranks."""
    checkpoint_folders.clear_leftovers(partial.parent)
    partial.mkdir(parents=True)
    config.save(partial / "config.yaml")
    tokenizer.save(partial / "tokenizer")
    files.replace_file(partial / STATE, json.dumps(asdict(state)) + "\n")


def _written_by_all(
    meeting: Meeting, written: RankFiles, partial: Path, weights: Mapping[str, Tensor]
) -> tuple[checkpoint_folders.Digests, bool]:
    """Digests of every rank's files, and whether all weights are finite; weights: those that this
    rank writes. Raises on every rank what the first of them met; nothing of the folder stays then.
    """
    finite, error = all(bool(each.isfinite().all()) for each in weights.values()), None
    try:
        written.write()
    except OSError as found:
        error = FileError.of(found)
    except Exception as found:
        say(of_error(found).rstrip())
        error = RankError(f"rank {meeting.rank} could not write its part: {found}")
    shares = meeting.all((written.digests, finite, error))
    if errors := [error for _, _, error in shares if error is not None]:
        if meeting.rank == 0:
            with suppress(OSError):
                files.remove(partial)
        errors[0].on_all_ranks = True
        raise errors[0]
    found = {name: digest for share, _, _ in shares for name, digest in share.items()}
    return found, all(finite for _, finite, _ in shares)


def _seal(
    partial: Path, state: RunState, found: checkpoint_folders.Digests, flaw: str | None
) -> Path:
    """found: of the files that ranks have written; those of all ranks are read now."""
    rest = checkpoint_folders.digests(partial, known=found)
    target = checkpoint_folders.seal(partial, state.step, found | rest, flaw)
    _mark_best(target.parent, state.best)
    return target


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """Of the host and, where a rank computes on a GPU, of that."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """A checkpoint of another kind of device, or an older one, has none for this GPU."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _digests(meeting: Meeting, folder: Path) -> checkpoint_folders.Digests:
    """Of a whole folder, which the ranks read in shares; what cannot be read has none."""
    try:
        own = checkpoint_folders.digests(folder, meeting.rank, meeting.size)
    except OSError:
        own = {}
    return {name: digest for share in meeting.all(own) for name, digest in share.items()}


def _rotate(meeting: Meeting, folder: Path, keep: int, written: Path) -> None:
    """Remove what is older than the `keep` newest good checkpoints, but for the best one; every
    rank must call.

    written: one that need not be read again. Damaged and flawed ones do not count.
    """
    complete = meeting.of_rank_0(lambda: list(checkpoint_folders.newest_first(folder)))
    good, place = 0, 0
    while len(complete) > keep and place < len(complete) and good < keep:
        good += _is_good(meeting, complete[place], written)
        place += 1
    if good == keep:
        meeting.of_rank_0(lambda: _remove_but_best(folder, complete[place:]))


def _remove_but_best(folder: Path, old: Sequence[Path]) -> None:
    best = checkpoint_folders.best_of(folder)
    for each in old:
        if best is None or each != best[0]:
            checkpoint_folders.remove(each)


def _is_good(meeting: Meeting, folder: Path, written: Path) -> bool:
    if meeting.of_rank_0(lambda: checkpoint_folders.flaw_of(folder)) is not None:
        return False
    if folder == written:
        return True
    found = _digests(meeting, folder)

    def whole() -> bool:
        try:
            checkpoint_folders.check(folder, found)
        except CheckpointError as error:
            say(f"checkpoint does not count: {error}")
            return False
        return True

    return meeting.of_rank_0(whole)


def find(output: Path, timeout_s: float = 600.0) -> Path | None:
    """The newest good checkpoint of a run, or None if it has none at all; every rank must call, for
    they read it in shares.

    Others are named on standard error. Raises CheckpointError when none is good.
    """
    folder, known = output / FOLDER, {}
    meeting = Meeting(f"find-{next(_meetings)}", f"reading {folder}", timeout_s)
    for each in meeting.of_rank_0(lambda: list(checkpoint_folders.newest_first(folder))):
        known[each] = _digests(meeting, each)
        if meeting.of_rank_0(lambda each=each: _is_whole(each, known[each])):
            break
    return meeting.of_rank_0(lambda: checkpoint_folders.newest_good(folder, known))


def _is_whole(folder: Path, found: checkpoint_folders.Digests) -> bool:
    with suppress(CheckpointError):
        checkpoint_folders.check(folder, found)
        return checkpoint_folders.flaw_of(folder) is None
    return False


def load(engine: Engine, config: Config, target: Path, steps: Sequence[int]) -> RunState:
    """Continue from a checkpoint; every rank must call. steps: of each stage.

    Settings that have changed since are applied and shown, or refused by name: CheckpointError.
    """
    state = RunState.read(target)
    old = load_config_file(target / "config.yaml")
    state = replace(state, loader=_with_parts(state.loader, old))
    before = _steps_of(old, state.loader["parts"])
    changed = changes(old, config, target, Progress.at(state.step, steps, before))
    then, now = _layout(old, state.ranks), _layout(config, dist.get_world_size())
    # Other settings of DeepSpeed's may cut its groups in other places; into files it loads nothing.
    same = then == now and old.training.deepspeed == config.training.deepspeed
    if same and config.training.nvme_path is None:
        _load_same(engine, target)
    else:
        _load_other(engine, config, target, then, now)
    if changed and dist.get_rank() == 0:
        say(f"changed since the checkpoint: {', '.join(changed)}")
    if _held_out_data(old) != _held_out_data(config):
        state = replace(state, held_out={})  # of other samples: nothing to compare with
    best = of_rank_0(lambda: _still_best(state.best, old, config, target.parent))
    return replace(state, best=best)


def _still_best(best: Best | None, old: Config, config: Config, folder: Path) -> Best | None:
    """The best checkpoint, where it is there and the settings still compare by the same number."""
    why = None
    if best is not None and config.training.best != best.number:
        why = f"training.best is {config.training.best} now"
    elif best is not None and _held_out_data(old) != _held_out_data(config):
        why = "the held-out samples are others now"
    elif best is not None and not checkpoint_folders.is_complete(folder, best.step):
        why = "it is gone"
    if why is not None:
        say(f"the best checkpoint ({best}) is so no longer: {why}")
        best = None
    _mark_best(folder, best)
    return best


def _mark_best(folder: Path, best: Best | None) -> None:
    if best is None:
        checkpoint_folders.mark_best(folder, None)
    else:
        checkpoint_folders.mark_best(folder, best.step, number=best.number, value=best.value)


def _held_out_data(config: Config) -> tuple[int, StageData]:
    """What a run's held-out samples are made of, that may change."""
    return config.training.held_out_samples, config.corpus.stages[-1].data


def _with_parts(state: LoaderState, old: Config) -> LoaderState:
    """A loader's state that says how many samples each stage had, as older ones do not."""
    stages = [stage.samples for stage in old.corpus.stages]
    known = [] if None in stages else [[samples] for samples in stages]
    return {"parts": known} | state


def _steps_of(config: Config, parts: Sequence[Sequence[int]]) -> Sequence[int]:
    """Steps of each stage that had these samples; none where they are not known."""
    size = config.training.batch_samples
    return Schedule.of(config.stages, list(map(sum, parts)), size).steps


def _layout(config: Config, ranks: int) -> RankLayout:
    training = config.training
    return RankLayout(
        ranks, training.zero_stage, training.tensor_parallel, training.document_parallel
    )


def _load_same(engine: Engine, target: Path) -> None:
    """To the last bit what these ranks wrote."""
    engine.load(target.parent, target.name)
    part = DeepSpeedGroups.get_model_parallel_rank()
    with safe_open(target / f"weights-tp{part}.safetensors", framework="pt") as stored:
        engine.keep(stored.get_tensor)
    own = _own(target, dist.get_rank())
    _set_random_states(own, engine.device)
    engine.model.queue.load_state_dict(own["queue"])


def _load_other(
    engine: Engine, config: Config, target: Path, then: RankLayout, now: RankLayout
) -> None:
    """By name what another layout wrote; a rank's own state is that of one rank of before."""
    part = DeepSpeedGroups.get_model_parallel_rank()
    stored = StoredStates(target, then, config.model, engine.learned, part, now.tensor_parallel)
    engine.adopt(stored)
    engine.keep(stored.weight)
    _set_random_states(_own(target, dist.get_rank() % then.ranks), engine.device)
    queues = _merge_queues(engine, target, then, now)
    if dist.get_rank() == 0 and then != now:
        say(
            f"{target.name} was written by {then}, and is read by {now}: the same weights, "
            "optimizer and next samples; a rank's random state is one of those ranks'"
            + (f", its key queue of the newest documents of {queues} of theirs" if queues else "")
        )


def _merge_queues(engine: Engine, target: Path, then: RankLayout, now: RankLayout) -> int:
    """A queue is of the documents that a group of ranks read: take over those of the groups whose
    samples are this one's now. Returns how many that were, 0 where there are no queues or the
    groups are as before."""
    own = DeepSpeedGroups.get_data_parallel_rank() // now.document_parallel
    before, groups = then.replicas, now.replicas
    read = [each for each in range(before) if each % groups == own] or [own % before]
    # Tensor-parallel ranks are neighbours, then document-parallel ones, and have the same queue.
    first = then.tensor_parallel * then.document_parallel
    engine.model.queue.merge([_own(target, each * first)["queue"] for each in read])
    return len(read) if len(engine.model.queue) and before != groups else 0


def _own(target: Path, rank: int) -> dict[str, Any]:
    return torch.load(target / f"own-rank{rank}.pt", weights_only=True)
