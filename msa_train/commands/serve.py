"""`msa serve`: a model and its memory banks over HTTP."""

from __future__ import annotations

import argparse
from pathlib import Path

from msa_train.commands.flags import add_flags, from_flags
from msa_train.commands.output import add_hybrid, add_retrieval
from msa_train.commands.placement import add_placement, placement
from msa_train.memory.search.settings import TierSettings
from msa_train.serving.settings import AllowedHosts, ServerLimits, check_host


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "serve", help="answer over HTTP: OpenAI's chat completions, the memory, the explorer page"
    )
    parser.add_argument("export", type=Path, help="folder of an exported model")
    parser.add_argument(
        "--bank", action="append", default=[], metavar="NAME=PATH",
        help="a bank that this model built; the first is asked unless a request names another",
    )  # fmt: skip
    parser.add_argument(
        "--banks-dir", type=Path, metavar="DIR",
        help="folder whose banks are served too, and in which requests may make and drop banks",
    )  # fmt: skip
    parser.add_argument("--name", help="of the model (default: the name of the export's folder)")
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
    add_placement(parser)
    memory = parser.add_argument_group("memory")
    memory.add_argument(
        "--ranks", type=int, default=1, metavar="N",
        help="processes of this machine that divide the documents; on GPUs each has its own",
    )  # fmt: skip
    memory.add_argument(
        "--rank-timeout-s", type=float, default=60.0, metavar="S",
        help="for a request to the other ranks; one that is late or dead is restarted",
    )  # fmt: skip
    memory.add_argument(
        "--rank-start-timeout-s", type=float, default=300.0, metavar="S",
        help="for the other ranks to start, and to read the router keys of a bank",
    )  # fmt: skip
    add_flags(memory, TierSettings)
    add_retrieval(memory)
    add_hybrid(
        memory,
        "where routers choose the texts to read, BM25 over all texts chooses with them",
    )
    add_flags(parser.add_argument_group("limits"), ServerLimits)
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    from msa_train.errors import ConfigError
    from msa_train.interop.export import load_export
    from msa_train.memory.search.hybrid import WordIndexes
    from msa_train.serving.access import ApiKeys
    from msa_train.serving.assemble import assemble, check_fits, search_ranks
    from msa_train.serving.banks import ServedModel
    from msa_train.serving.logs import start_logging
    from msa_train.serving.server import run

    start_logging()
    keys = ApiKeys.load(options.api_keys) if options.api_keys else ApiKeys()
    check_host(options.host, bool(keys))
    hosts = AllowedHosts.of(options.host, tuple(options.allow_host))
    limits = from_flags(ServerLimits, options)
    named, folder = [_named(given) for given in options.bank], options.banks_dir
    if not named and folder is None:
        raise ConfigError("serve: give --bank NAME=PATH or --banks-dir DIR")
    tiers, placed = from_flags(TierSettings, options), placement(options)
    words = WordIndexes() if options.hybrid else None
    limits_s = options.rank_timeout_s, options.rank_start_timeout_s
    with search_ranks(options.ranks, tiers, *limits_s, placed.device) as ranks:
        loaded = load_export(options.export, placed)
        paths = [path for _, path in named]
        planned = check_fits(
            loaded.model, paths, folder, tiers, limits, placed.device, options.ranks
        )
        name = options.name or options.export.resolve().name
        model = ServedModel(name, loaded.model, loaded.tokenizer, loaded.fingerprint)
        state = assemble(
            model, named, folder, ranks, tiers, limits, keys, hosts, words, options.retrieval,
            planned,
        )  # fmt: skip
        run(state, options.host, options.port)
    return 0


def _named(given: str) -> tuple[str, Path]:
    from msa_train.errors import ConfigError
    from msa_train.serving.banks import check_name

    name, equals, path = given.partition("=")
    if not equals or not path:
        raise ConfigError(f"--bank {given}: give NAME=PATH")
    check_name(name)
    return name, Path(path)
