"""`msa serve`: a model and its memory banks over HTTP."""

from __future__ import annotations

import argparse
from pathlib import Path


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
    memory = parser.add_argument_group("memory")
    memory.add_argument(
        "--keys", default="stored",
        help="form of the router keys that are searched: stored (default), float32, bfloat16, "
        "int8, fp8; answers are those of full precision in every form",
    )  # fmt: skip
    memory.add_argument(
        "--states", default="mapped",
        help="pooled K and V: mapped from disk (default), or copied to host memory",
    )  # fmt: skip
    memory.add_argument(
        "--hot-mb", type=float, default=256.0, metavar="MB",
        help="of documents' states kept on the device, for each bank (default 256)",
    )  # fmt: skip
    limits = parser.add_argument_group("limits")
    for flag, kind, default, meaning in (
        ("--max-concurrent", int, 32, "answers at once"),
        ("--context-tokens", int, 4096, "of a conversation with all that is read for it"),
        ("--queue", int, 128, "answers that wait; more are refused with 429"),
        ("--max-body-mb", float, 16.0, "of a request"),
        ("--max-batch", int, 256, "documents in one request"),
        ("--timeout-s", float, 300.0, "for a request"),
        ("--drain-s", float, 30.0, "for running requests when the server is told to stop"),
    ):
        help = f"{meaning} (default {default:g})"
        limits.add_argument(flag, type=kind, default=default, metavar="N", help=help)
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    import logging

    from msa_train.errors import ConfigError
    from msa_train.interop.export import load_export
    from msa_train.memory.scheduler import Scheduler
    from msa_train.memory.served import ServedBank
    from msa_train.memory.service import AnswerService
    from msa_train.memory.tiers import TierSettings
    from msa_train.serving.banks import Banks, ServedModel
    from msa_train.serving.keys import ApiKeys
    from msa_train.serving.running import run
    from msa_train.serving.service import Service
    from msa_train.serving.settings import AllowedHosts, Limits, check_host

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    tiers = TierSettings(options.keys, options.states, options.hot_mb)
    keys = ApiKeys.load(options.api_keys) if options.api_keys else ApiKeys()
    check_host(options.host, bool(keys))
    limits = Limits(
        options.max_body_mb, options.max_batch, options.max_concurrent, options.queue,
        options.context_tokens, options.timeout_s, options.drain_s,
    )  # fmt: skip
    named = [_named(given) for given in options.bank]
    if not named and options.banks_dir is None:
        raise ConfigError("serve: give --bank NAME=PATH or --banks-dir DIR")
    decoder, _, tokenizer, fingerprint = load_export(options.export)
    model = ServedModel(
        options.name or options.export.resolve().name, decoder, tokenizer, fingerprint
    )

    def open_bank(path: Path) -> ServedBank:
        return ServedBank.open(path, decoder, fingerprint, tiers)

    banks = Banks(open_bank, options.banks_dir)
    for name, path in reversed(named):
        banks.open(name, path)
    hosts = AllowedHosts.of(options.host, tuple(options.allow_host))
    scheduler = Scheduler(decoder, tokenizer, limits.concurrent, limits.context_tokens)
    service = Service(model, banks, AnswerService(scheduler), keys, limits, hosts)
    run(service, options.host, options.port)
    return 0


def _named(given: str) -> tuple[str, Path]:
    from msa_train.errors import ConfigError

    name, equals, path = given.partition("=")
    if not equals or not path:
        raise ConfigError(f"--bank {given}: give NAME=PATH")
    return name, Path(path)
