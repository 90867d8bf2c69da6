"""The training loop: one process per rank, started by the deepspeed launcher.

Exit codes: 0 all steps done, 143 stopped after saving (SIGTERM, SIGINT, or a launcher that
died), otherwise the error's own code.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from data_pipeline.shards.loader import ShardLoader
from msa_train.config import Config, load_config
from msa_train.errors import CheckpointError, ConfigError, DivergedError, FileError, StuckError
from msa_train.hardware import threads_each
from msa_train.model.batch import MemoryBatch
from msa_train.model.losses import Losses
from msa_train.model.megatron import MSAModel
from msa_train.model.ops import uses_liger
from msa_train.parallel import groups
from msa_train.parallel.cpu import choose_device, gpus
from msa_train.parallel.documents import DocumentGroup
from msa_train.parallel.groups import DeepSpeedGroups
from msa_train.stages import Schedule
from msa_train.training import checkpoint, last_words, launchers, swap_files, watchdog
from msa_train.training.activations import advice
from msa_train.training.best import Best
from msa_train.training.data import (
    Collate,
    checked_tokenizer,
    open_shards,
    samples_per_group,
    stage_reads,
)
from msa_train.training.engine import Engine
from msa_train.training.full_memory import full_memory, ran_out
from msa_train.training.gradient_cache import GradientCache
from msa_train.training.held_out import COLUMNS, HeldOutEvaluation, forgetting
from msa_train.training.initial_weights import starting_weights
from msa_train.training.last_words import LastWords
from msa_train.training.metrics import Numbers, StepMetrics
from msa_train.training.output_lock import BusyOutputError, OutputLock
from msa_train.training.reporter import Reporter
from msa_train.training.saving import Saver
from msa_train.training.saying import say
from msa_train.training.spikes import LossSpikes
from msa_train.training.startup import StartUp
from msa_train.training.watchdog import Watchdog

TERMINATED = 143  # 128 + SIGTERM


class Trainer:
    """One rank of a run: its samples, the model under DeepSpeed, and where the run stands."""

    def __init__(
        self, config: Config, resume: bool, words: LastWords, starting: StartUp | None = None
    ):
        self.starting = starting or StartUp()
        self.config, self.settings = config, config.training
        self.group = DeepSpeedGroups.get_data_parallel_group()
        self.rank = dist.get_rank()
        reader = open_shards(config)
        built = [stage.samples for stage in reader.manifest.stages]
        self.schedule = Schedule.of(config.stages, built, self.settings.batch_samples)
        self.tokenizer = checked_tokenizer(config, reader)
        self.collate = Collate(self.tokenizer, config.model.router)
        documents = DocumentGroup.of(self.settings.document_parallel, self.settings.timeout_s)
        self.samples = samples_per_group(config, documents.replicas, documents.size)
        self.loader = ShardLoader(
            reader,
            reads=stage_reads(config, reader),
            seed=config.seed,
            rank=documents.replica,
            world_size=documents.replicas,
            transform=lambda sample: self.collate([sample]).share(documents.rank, documents.size),
        )
        self.held_out = HeldOutEvaluation.of_run(config, self.collate, documents)
        how = self.settings.recompute, self.settings.sequence_parallel
        model = MSAModel(config.model, *how)
        model.shards = documents if self.settings.pooled_states == "sharded" else None
        model.load_published(starting_weights(config))
        self.engine = Engine(model, self.settings, {stage.trains for stage in config.stages})
        self.gradients = GradientCache(self.engine, self.settings.gradient_cache_tokens, documents)
        self.saver = Saver(self.engine, config, self.tokenizer)
        self.skipped = self.skipped_in_a_row = 0
        self.spikes = LossSpikes(self.settings.loss_spike, self.schedule)
        self.held_out_start: Numbers = {}
        self.best: Best | None = None
        self.starting.ends("model")
        self.step, wandb_id = self._start(resume)
        self.reporter = Reporter(config, wandb_id, self.step, self.schedule.total, self.rank)
        self.watchdog = Watchdog(config.path, words, self.settings.timeout_s)
        self.engine.model.register_forward_pre_hook(lambda *_: self.watchdog.beat())
        self.stopping = ""  # why the run is to stop
        self.at_hand: MemoryBatch | None = None
        told = advice(config, fused=uses_liger(torch.empty(0, device=self.engine.device)))
        if told is not None and self.rank == 0:
            say(told)

    def _start(self, resume: bool) -> tuple[int, str | None]:
        found = checkpoint.find(self.config.path, self.settings.timeout_s)
        self.starting.ends("checkpoint_checked")
        if found is None:
            return 0, None
        if not resume:
            raise CheckpointError(
                f"{found} exists: continue it with --resume, or start under another output"
            )
        state = checkpoint.load(self.engine, self.config, found, self.schedule.steps)
        self.loader.load_state_dict(state.loader)
        self.spikes.load_state_dict(state.spikes)
        self.skipped, self.held_out_start = state.skipped, state.held_out
        self.best = state.best
        self.starting.ends("checkpoint_read")
        return state.step, state.wandb_id

    def run(self) -> int:
        """Train to the last step, or until the run is to stop. Returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: self.stop(signal.Signals(number).name))
        # One rank looks, and all stop with it: it is a file, on many machines' shared storage.
        launchers.watch(
            self.stop, lambda: self.rank == 0 and last_words.asked_to_stop(self.config.path)
        )
        self.watchdog.start()
        if self.held_out is not None and not self.step:
            self._evaluate_held_out()
        saved = logged = self.step
        waited, began = 0.0, time.perf_counter()
        while self.step < self.schedule.total:
            self.watchdog.phase("reading data")
            fetch = time.perf_counter()
            batches = [next(self.loader) for _ in range(self.samples)]
            waited += time.perf_counter() - fetch
            self.starting.ends("first_batch")
            logs = self._is_time_for(self.settings.log_every, self.step + 1)
            numbers, stop = self._train_step(batches, logs)
            self.starting.finish("first_step")
            self.step += 1
            self._count_skipped()
            if logs:
                count, logged = self.step - logged, self.step
                self._report(numbers, (time.perf_counter() - began) / count, waited / count)
                waited, began = 0.0, time.perf_counter()
            if self._is_time_for(self.settings.held_out_every, self.step):
                spent = time.perf_counter()
                self._evaluate_held_out()
                began += time.perf_counter() - spent
            if stop or self._is_best or self.step % self.settings.checkpoint_every == 0:
                began += self._save(ends=stop or self.step == self.schedule.total)
                saved = self.step
            self._report_checkpoints()
            if stop:
                self.reporter.alert(
                    "training stopped",
                    f"{self.stopping or 'another rank'} at step {self.step}, which is saved: "
                    "continue with --resume",
                )
                return TERMINATED
        if saved < self.step:
            self._save(ends=True)
            self._report_checkpoints()
        return 0

    def close(self, code: int = 0) -> None:
        self.watchdog.stop()
        self.loader.close()
        self.reporter.finish(code)

    def _is_time_for(self, every: int, step: int) -> bool:
        """After every `every` steps and after the last one; 0: never."""
        return bool(every) and (step % every == 0 or step == self.schedule.total)

    @property
    def _is_best(self) -> bool:
        """Whether no step so far has been better than this one, by training.best."""
        return self.best is not None and self.best.step == self.step

    def _evaluate_held_out(self) -> None:
        self.watchdog.phase("evaluating")
        numbers, examples = self.held_out.evaluate(self.gradients)
        if not self.step:
            self.held_out_start = numbers
        numbers |= forgetting(numbers, self.held_out_start)
        self.reporter.log(self.step, numbers)
        self.reporter.table("held_out/retrievals", self.step, COLUMNS, examples)
        if self.settings.best is not None and self.step and not self.engine.skipped:
            new = Best(self.settings.best, self.step, numbers[self.settings.best])
            self.best = groups.of_rank_0(lambda: new.or_before(self.best))
            if self._is_best and self.rank == 0:
                say(f"best so far: {self.best}")

    def _train_step(self, batches: list[MemoryBatch], logs: bool) -> tuple[Numbers, bool]:
        """One optimizer step. Returns its numbers (none unless it logs) and whether to stop now."""
        self.watchdog.phase(f"in step {self.step + 1}")
        labels, contexts, stop = self._global_counts(batches)
        stage = self.schedule.stage(self.step)
        self.engine.set_learning_rate(self._rate(), stage.trains)
        self.engine.model.queue.keep(stage.queue_documents)
        metrics = None
        if logs:
            layers, device = self.config.model.router_layers, self.engine.device
            metrics = StepMetrics(layers, self.group, device, labels, contexts)

        def weigh(losses: Losses) -> Tensor:
            lm, router = losses.lm / max(1.0, labels), losses.router / max(1.0, contexts)
            return stage.lm_weight * lm + stage.router_weight * router

        share = torch.zeros((), dtype=torch.float64, device=self.engine.device)
        for batch in batches:
            batch = self.at_hand = batch.to(self.engine.device)
            losses = self.gradients.backward(batch, weigh)
            share += weigh(losses).detach()
            if metrics is not None:
                metrics.add(batch, losses)
        self._update(share)
        if metrics is None:
            return {}, stop
        place = {"lr": self._rate(), "stage": self.schedule.place(self.step)[0]}
        numbers = metrics.result() | place | self.spikes.numbers(self.step)
        if (norm := self.engine.gradient_norm()) is not None:
            numbers["grad_norm"] = norm
        return numbers, stop

    def _rate(self) -> float:
        return self.schedule.learning_rate(self.step) * self.spikes.rate_factor(self.step)

    def _update(self, share: Tensor) -> None:
        """Change the weights by the gradients of a step; training.loss_spike says otherwise where
        its loss spikes. share: this rank's of the loss."""
        spike = None
        if self.spikes.watched:
            dist.all_reduce(share)  # over tensor-parallel ranks too: all see the same bits
            spike = self.spikes.look(self.step, float(share) / self.settings.tensor_parallel)
        if spike is None:
            self.engine.step()
            return
        if self.spikes.too_many:
            limit = f"training.loss_spike.limit ({self.settings.loss_spike.limit})"
            raise self._diverged(f"step {self.step + 1}: {spike}: {limit} is reached")
        done = self._treat_spike()
        self.reporter.alert("loss spike", f"step {self.step + 1}: {spike}; {done}", say_each=True)

    def _treat_spike(self) -> str:
        """Returns what has been done."""
        policy = self.settings.loss_spike.policy
        if policy == "lower":
            self.engine.set_learning_rate(self._rate(), self.schedule.stage(self.step).trains)
            self.engine.step()
            return f"the learning rate is lowered to {self._rate():.3g}"
        self.engine.discard()
        if policy == "skip":
            return "the step is skipped"
        self.saver.finish()  # else it would hang on its speed which checkpoint is the newest
        good = checkpoint.find(self.config.path, self.settings.timeout_s)
        if good is None:
            return "the step is skipped, as there is no checkpoint to go back to yet"
        state = checkpoint.load(self.engine, self.config, good, self.schedule.steps)
        self.spikes.roll_back(state.spikes, self.step + 1 - state.step)
        self.best = state.best
        return f"weights and optimizer are those of {good.name} again, and the next samples follow"

    def _count_skipped(self) -> None:
        if not self.engine.skipped:
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        if self.spikes.now:  # which has been said, and has a limit of its own
            return
        self.skipped_in_a_row += 1
        if self.rank == 0:
            said = f"step {self.step} skipped: a loss or gradient was not finite"
            say(f"{said} ({self.skipped} so far)")
        if self.skipped_in_a_row >= self.settings.skipped_steps_limit:
            raise self._diverged(
                f"{self.skipped_in_a_row} steps in a row, up to {self.step}, had losses or "
                "gradients that are not finite"
            )

    def _diverged(self, what: str) -> DivergedError:
        """Every rank must call."""
        self.saver.finish()  # what is being written may be good
        try:
            good = checkpoint.find(self.config.path, self.settings.timeout_s)
        except CheckpointError:
            good = None
        then = (
            "there is no good checkpoint: start again under another output, with a lower"
            if good is None
            else f"the last good checkpoint is {good}: continue it with --resume and a lower"
        )
        self.reporter.alert("training diverged", f"{what}; {then} learning rate")
        return DivergedError(f"{what}; {then} learning rate, or look at the data of these steps")

    def _global_counts(self, batches: list[MemoryBatch]) -> tuple[float, float, bool]:
        """Labelled tokens and routed contexts of the whole step, and whether any rank must stop."""
        own_labels = sum(batch.label_count for batch in batches)
        own_contexts = sum(batch.routed_context_count for batch in batches)
        own = [own_labels, own_contexts, bool(self.stopping) or self.saver.failed]
        if dist.get_world_size() == 1:  # nobody to ask, and no device to wait for
            return float(own_labels), float(own_contexts), own[2]
        counts = torch.tensor(own, dtype=torch.float64, device=self.engine.device)
        dist.all_reduce(counts)  # of all ranks: those that share a tensor stop together, too
        labels, contexts, stopping = counts.tolist()
        shared = self.settings.tensor_parallel  # each of which has counted the same
        return labels / shared, contexts / shared, stopping > 0

    def _report(self, numbers: Numbers, step_s: float, wait_s: float) -> None:
        numbers["skipped_steps"] = self.skipped
        numbers["skipped_samples"] = self._samples_skipped()
        numbers |= self.saver.take_times() | self.starting.take()
        numbers["step_ms"] = step_s * 1e3
        numbers["data_wait"] = wait_s / step_s
        numbers["memory_tokens_per_s"] = numbers.pop("memory_tokens") / step_s
        numbers["active_tokens_per_s"] = numbers.pop("active_tokens") / step_s
        numbers |= _gates(self.engine)
        self.reporter.log(self.step, numbers)

    def _samples_skipped(self) -> int:
        """In all replicas since this start of the run; each data-parallel rank must call."""
        count = torch.tensor(self.loader.reader.skipped, device=self.engine.device)
        dist.all_reduce(count, group=self.group)
        # All ranks that share documents read, and skip, the same samples: one a little ahead.
        return -(-int(count) // self.settings.document_parallel)

    def _save(self, ends: bool) -> float:
        """Returns the seconds that the steps waited for it. ends: none follows."""
        self.watchdog.phase("saving")
        if not self.engine.skipped:
            self.spikes.saved()
        state = checkpoint.RunState(
            self.step,
            self.loader.state_dict(),
            self.reporter.wandb_id,
            dist.get_world_size(),
            self.skipped,
            self.held_out_start,
            self.spikes.state_dict(),
            self.best,
        )
        return self.saver.save(state, ends)

    def _report_checkpoints(self) -> None:
        for folder, step in self.saver.take_sealed():
            best = self.best is not None and self.best.step == step
            aliases = ["final"] * (step == self.schedule.total) + ["best"] * best
            self.reporter.checkpoint(folder, step, aliases)

    def stop(self, why: str) -> None:
        """Save after the step at hand, on all ranks, and end."""
        self.stopping = self.stopping or why


def _gates(engine: Engine) -> Numbers:
    """The learned scalars of the gate, where this rank holds them whole."""
    weights = {}
    for layer in engine.model.decoder.layers:
        for name in ("router_gate", "router_threshold"):
            weight = getattr(layer.self_attention, name, None)
            if weight is not None and weight.numel() == 1:
                short = name.removeprefix("router_")
                weights[f"router/layer_{layer.layer_number - 1}_{short}"] = weight.detach()
    if not weights:
        return {}
    return dict(zip(weights, torch.cat(list(weights.values())).tolist(), strict=True))


def _ranks_here() -> int:
    """How many this machine has, as DeepSpeed's launcher or torchrun says."""
    return int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """A rank's whole life; never returns."""
    arguments = [a for a in arguments or sys.argv[1:] if not a.startswith("--local_rank")]
    resume = "--resume" in arguments
    lock = words = None
    starting = StartUp()
    starting.ends("imports")
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # there is nothing to save yet, nor to tell
        config = load_config([a for a in arguments if a != "--resume"])
        choose_device(config.training.device)
        if not gpus():
            torch.set_num_threads(threads_each(_ranks_here()))
        groups.start(
            config.training.tensor_parallel,
            config.training.timeout_s,
            config.training.document_parallel,
        )
        lock = OutputLock(config.path)
        groups.of_rank_0(lambda: last_words.clear(config.path))
        words = LastWords(config.path)
        starting.ends("ranks_meet")
        code, said = _train(config, resume, words, starting)
    except Exception as error:
        stuck = words and watchdog.verdict(config.path)  # whose end is what broke here
        code, said = (StuckError.exit_code, stuck.said) if stuck else _explain(error)
    if words is not None:
        words.end(code, said)
    swap_files.remove()
    if lock is not None:
        lock.release()
    groups.finish(code, together=code in (0, TERMINATED))


def _train(config: Config, resume: bool, words: LastWords, starting: StartUp) -> tuple[int, str]:
    trainer = None
    try:
        trainer = Trainer(config, resume, words, starting)
        code, said = trainer.run(), ""
    except DivergedError as error:
        code, said = _explain(error)
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        code, said = _explain(full_memory(error, config, trainer and trainer.at_hand))
    if trainer is not None:
        trainer.close(code)
    return code, said


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code, and what is said of an error: a user's in a line, once, by rank 0 where every rank
    meets it. A bug's traceback is printed, and the other ranks are not left waiting."""
    get_error_handler().record_exception(error)  # torchrun shows it beside the rank
    if isinstance(error, OSError):
        error = FileError.of(error)
    if not isinstance(error, ValueError) or not hasattr(error, "exit_code"):
        say(said := last_words.of_error(error).rstrip())
        return 1, said
    rank = os.environ.get("RANK", "0")
    everywhere = isinstance(error, (BusyOutputError, ConfigError, DivergedError))
    if rank == "0" or not (everywhere or getattr(error, "on_all_ranks", False)):
        say(f"rank {rank}: {error}")
    return error.exit_code, str(error)


if __name__ == "__main__":
    main()
