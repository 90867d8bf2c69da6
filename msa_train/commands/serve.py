"""`msa serve`: a model and its memory banks over HTTP."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msa_train.commands.flags import add_flags, from_flags
from msa_train.memory.search.settings import TierSettings
from msa_train.serving.settings import ServerLimits


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "serve", help="answer over HTTP: OpenAI's chat completions, the memory, the explorer page"
    )
    parser.add_argument("export", type=Path, help="folder of an exported model")
    parser.add_argument(
        "--bank", action="append", default=[], metavar="NAME=PATH",
        help="a bank that it built; the first is asked unless a request names another",
    )  # fmt: skip
    parser.add_argument(
        "--banks-dir", type=Path, metavar="DIR",
        help="folder whose banks are served, and where requests may make and drop banks",
    )  # fmt: skip
    parser.add_argument("--name", help="of the model (default: the export's folder)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (default 8000)")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="name under which others reach this server",
    )  # fmt: skip
    parser.add_argument(
        "--api-keys", type=Path, metavar="FILE",
        help="YAML list or JSON lines of {key or sha256, name, access: read or write}",
    )  # fmt: skip
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    memory = parser.add_argument_group("memory")
    memory.add_argument(
        "--ranks", type=int, default=1, metavar="N",
        help="processes of this machine that divide the documents; on GPUs each has its own",
    )  # fmt: skip
    memory.add_argument(
        "--rank-timeout-s", type=float, default=60.0, metavar="S",
        help="for a request to the other ranks; one that is late or dead is started again",
    )  # fmt: skip
    add_flags(memory, TierSettings)
    add_flags(parser.add_argument_group("limits"), ServerLimits)
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    import logging

    from msa_train.errors import ConfigError
    from msa_train.serving.keys import ApiKeys
    from msa_train.serving.settings import AllowedHosts, check_host

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    keys = ApiKeys.load(options.api_keys) if options.api_keys else ApiKeys()
    check_host(options.host, bool(keys))
    hosts = AllowedHosts.of(options.host, tuple(options.allow_host))
    limits = from_flags(ServerLimits, options)
    named = [_named(given) for given in options.bank]
    if not named and options.banks_dir is None:
        raise ConfigError("serve: give --bank NAME=PATH or --banks-dir DIR")
    _device(options)
    with _ranks(options) as ranks:
        _run(options, named, ranks, keys, limits, hosts)
    return 0


def _run(
    options: argparse.Namespace, named: list[tuple[str, Path]], ranks: Any, keys: Any,
    limits: Any, hosts: Any,
) -> None:  # fmt: skip
    from msa_train.interop.export import load_export
    from msa_train.memory.engine.engine_thread import EngineThread
    from msa_train.memory.engine.scheduler import Scheduler
    from msa_train.memory.search.live import LiveBank
    from msa_train.serving.banks import Banks, ServedModel
    from msa_train.serving.server import run
    from msa_train.serving.service import Service

    tiers = from_flags(TierSettings, options)
    decoder, _, tokenizer, fingerprint = load_export(options.export)
    _check_fits(decoder, [path for _, path in named], options, limits)
    decoder = decoder.to(_device(options))
    name = options.name or options.export.resolve().name

    def open_bank(path: Path) -> LiveBank:
        return LiveBank.open(path, decoder, fingerprint, tiers, ranks)

    banks = Banks(open_bank, options.banks_dir)
    for bank, path in reversed(named):
        banks.open(bank, path)
    model = ServedModel(name, decoder, tokenizer, fingerprint)
    scheduler = Scheduler(decoder, tokenizer, limits.concurrent, limits.context_tokens)
    _warm_up(scheduler, banks)
    service = Service(model, banks, EngineThread(scheduler), keys, limits, hosts)
    run(service, options.host, options.port)


def _check_fits(decoder: Any, paths: list[Path], options: argparse.Namespace, limits: Any) -> None:
    """Raises ConfigError, with the numbers and what would fit, for banks that this machine cannot
    serve: better now than out of memory in an hour."""
    from msa_train.memory.bank.manifest import MANIFEST, BankManifest
    from msa_train.memory.planner.hardware import this_machine
    from msa_train.memory.planner.plan import BankSize, Serving, plan

    if options.banks_dir is not None and options.banks_dir.is_dir():
        paths = paths + [each.parent for each in options.banks_dir.glob(f"*/{MANIFEST}")]
    manifests = [BankManifest.load(path) for path in paths]
    sizes = [BankSize.of_manifest(each) for each in manifests]
    if not any(each.documents for each in sizes):
        return
    counts = (sum(getattr(e, name) for e in sizes) for name in ("documents", "chunks", "tokens"))
    bank = BankSize(*counts, sizes[0].dtype)
    compute = str(next(decoder.parameters()).dtype).removeprefix("torch.")
    tiers = from_flags(TierSettings, options)
    serving = Serving(
        keys=tiers.keys, states=tiers.states, hot_mb=tiers.hot_mb * len(sizes),
        slots=limits.concurrent, slot_tokens=limits.context_tokens, compute=compute,
    )  # fmt: skip
    device = _device(options)
    devices = [device] if options.ranks == 1 else [f"cuda:{rank}" for rank in range(options.ranks)]
    machine = this_machine(devices if device.startswith("cuda") else ())
    plan(decoder.config, bank, machine, serving).check()


def _warm_up(scheduler: Any, banks: Any) -> None:
    """A first answer before anybody waits for one: it loads and compiles what all others use
    (measured: 5 s on a CPU)."""
    from msa_train.memory.engine.events import Failed
    from msa_train.memory.engine.interleave import InterleaveLimits
    from msa_train.memory.engine.sequence import Request

    for bank in banks:
        request = Request(
            "Is anything there?", bank.view(), "memory", InterleaveLimits(answer_tokens=2)
        )
        scheduler.submit(request)
        while scheduler.busy:
            for _, event in scheduler.step():
                if isinstance(event, Failed):
                    raise event.error
        return


@contextmanager
def _ranks(options: argparse.Namespace) -> Iterator[Any]:
    """The processes that search with this one; None for one alone."""
    from msa_train.errors import ConfigError

    if options.ranks < 1:
        raise ConfigError(f"--ranks {options.ranks}: give 1 or more")
    if not options.rank_timeout_s > 0:
        raise ConfigError(f"--rank-timeout-s {options.rank_timeout_s:g}: give more than 0")
    if options.ranks == 1:
        yield None
        return
    from msa_train.memory.ranks import Ranks

    device = _device(options).partition(":")[0]
    ranks = Ranks.start(
        options.ranks,
        tiers=from_flags(TierSettings, options),
        timeout_s=options.rank_timeout_s,
        device=device,
    )
    try:
        yield ranks
    finally:
        ranks.close()


def _device(options: argparse.Namespace) -> str:
    import torch

    from msa_train.errors import ConfigError

    chosen = options.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    if chosen.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {chosen}: torch sees no GPU here; give cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", chosen):
        raise ConfigError(f"--device {chosen}: give cpu or cuda")
    return chosen


def _named(given: str) -> tuple[str, Path]:
    from msa_train.errors import ConfigError
    from msa_train.serving.banks import check_name

    name, equals, path = given.partition("=")
    if not equals or not path:
        raise ConfigError(f"--bank {given}: give NAME=PATH")
    check_name(name)
    return name, Path(path)
