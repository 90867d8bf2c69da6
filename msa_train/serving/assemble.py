"""A server put together: whether its banks fit this machine, the processes that search them, the
banks and the scheduler over a model, and a first answer that warms all of it up."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from msa_train import hardware
from msa_train.errors import BankError, ConfigError
from msa_train.memory.bank.manifest import MANIFEST, BankManifest
from msa_train.memory.engine.engine_thread import EngineThread
from msa_train.memory.engine.events import Failed
from msa_train.memory.engine.interleave import InterleaveLimits, Mode, Request
from msa_train.memory.engine.scheduler import PREFILL_TOKENS, Scheduler
from msa_train.memory.planner import plan
from msa_train.memory.ranks import Ranks
from msa_train.memory.search.hybrid import WordIndexes
from msa_train.memory.search.live import LiveBank
from msa_train.memory.search.settings import TierSettings
from msa_train.model.decoder import MSADecoder
from msa_train.serving.access import ApiKeys
from msa_train.serving.banks import Banks, ServedModel
from msa_train.serving.settings import AllowedHosts, ServerLimits
from msa_train.serving.state import ServerState

log = logging.getLogger("msa_train.serving")
NamedPath = tuple[str, Path]


def assemble(
    model: ServedModel,
    named: Sequence[NamedPath],
    folder: Path | None,
    ranks: Ranks | None,
    tiers: TierSettings,
    limits: ServerLimits,
    keys: ApiKeys,
    hosts: AllowedHosts,
    words: WordIndexes | None = None,
    retrieval: Mode | None = None,
    planned: plan.Plan | None = None,
) -> ServerState:
    """All that a server needs, running and warm. model: on its device. named: banks under their
    names, the default first. folder: where banks may be made and dropped. words: see LiveBank.
    retrieval: see ServerState. planned: of check_fits; what was allocated is logged beside it.

    A bank that cannot be opened is reported while the others are served. Raises BankError where
    there is no other, and none can be made."""

    def open_bank(path: Path) -> LiveBank:
        return LiveBank(path, model.model, model.fingerprint, tiers, ranks, words)

    banks = Banks(open_bank, folder)
    for name, path in reversed(named):
        banks.open(name, path)
    if folder is None and not banks.opened:
        raise next(bank.error for bank in banks if bank.error)  # nothing could ever be answered
    chunks = 0 if planned is None else plan.chunks_read(planned.config, planned.bank)
    scheduler = Scheduler(
        model.model, model.tokenizer, limits.concurrent, limits.context_tokens, chunks=chunks
    )
    _warm_up(scheduler, banks)
    if planned is not None:
        for line in placed(planned, model.model, scheduler):
            log.info("%s", line)
    hybrid = None if words is None else "bm25"
    engine = EngineThread(scheduler)
    return ServerState(model, banks, engine, keys, limits, hosts, hybrid, retrieval)


@contextmanager
def search_ranks(
    count: int, tiers: TierSettings, timeout_s: float, start_timeout_s: float, device: str
) -> Iterator[Ranks | None]:
    """The processes that search with this one, until the context ends; None for one alone.

    device: cpu or cuda:N. Raises ConfigError for impossible settings.
    """
    if count < 1:
        raise ConfigError(f"--ranks {count}: give 1 or more")
    for flag, seconds in (("timeout", timeout_s), ("start-timeout", start_timeout_s)):
        if not seconds > 0:
            raise ConfigError(f"--rank-{flag}-s {seconds:g}: give more than 0")
    if count == 1:
        yield None
        return
    if device not in ("cpu", "cuda", "cuda:0"):
        raise ConfigError(
            f"--device {device} --ranks {count}: rank r computes on card r, and the model on the "
            "first; leave --device out, or choose the cards with CUDA_VISIBLE_DEVICES"
        )
    given = timeout_s, start_timeout_s, device.partition(":")[0]
    ranks = Ranks(count, None, tiers, *given)
    try:
        yield ranks.start()
    finally:
        ranks.close()


def check_fits(
    decoder: MSADecoder,
    paths: Sequence[Path],
    folder: Path | None,
    tiers: TierSettings,
    limits: ServerLimits,
    device: str,
    ranks: int,
) -> plan.Plan | None:
    """The plan of what will be served; None where there is no document yet.

    Raises ConfigError, with the numbers and what would fit, for banks that this machine cannot
    serve: better now than out of memory in an hour.

    paths: of named banks; those in `folder` count too. device: this process's; on GPUs each of the
    `ranks` has its own.
    """
    paths = list(paths)
    if folder is not None and folder.is_dir():
        paths += [each.parent for each in folder.glob(f"*/{MANIFEST}")]
    manifests = []
    for path in paths:
        with suppress(BankError):  # it is reported when it is opened
            manifests.append(BankManifest.load(path))
    if not any(each.segments for each in manifests):
        return None
    bank = plan.BankSize.of_manifests(manifests)
    compute = str(next(decoder.parameters()).dtype).removeprefix("torch.")
    serving = plan.Serving(
        keys=tiers.keys, states=tiers.states, hot_mb=tiers.hot_mb * len(manifests),
        slots=limits.concurrent, slot_tokens=limits.context_tokens,
        prefill_tokens=PREFILL_TOKENS, compute=compute,
    )  # fmt: skip
    alone = ranks == 1 or device == "cpu"
    cards = [device] if alone else [f"cuda:{rank}" for rank in range(ranks)]
    found = plan.plan(decoder.config, bank, hardware.this_machine(cards), serving)
    found.check()
    return found


def placed(planned: plan.Plan, decoder: MSADecoder, scheduler: Scheduler) -> list[str]:
    """What was planned beside what was allocated, for the log: weights and KV cache by the sizes of
    their tensors; on a GPU all that torch has there, and the most it ever had."""
    taken = sum(weight.nbytes for weight in decoder.parameters()) + scheduler.cache_bytes
    dtype = next(decoder.parameters()).dtype
    lines = [
        f"weights and KV cache in {str(dtype).removeprefix('torch.')} on {decoder.device}: "
        f"planned {plan.gb(planned.held('model'))}, allocated {plan.gb(taken)}"
    ]
    if decoder.device.type == "cuda":
        now = torch.cuda.memory_allocated(decoder.device)
        most = torch.cuda.max_memory_allocated(decoder.device)
        lines.append(
            f"{decoder.device}: planned {plan.gb(planned.held('model', 'memory'))} to stay, "
            f"allocated {plan.gb(now)}; planned {plan.gb(planned.need('device'))} at most, "
            f"allocated {plan.gb(most)} so far"
        )
    return lines


def _warm_up(scheduler: Scheduler, banks: Banks) -> None:
    """A first answer before anybody waits for one: it loads and compiles what all others use
    (measured: 5 s on a CPU). Then a GPU's steps are captured."""
    for bank in banks.opened[:1]:
        limits = InterleaveLimits(answer_tokens=2)
        scheduler.submit(Request("Is anything there?", bank.view(), "memory", limits))
        while scheduler.busy:
            for _, event in scheduler.step():
                if isinstance(event, Failed):
                    raise event.error
    if banks.opened:
        scheduler.capture()
