"""`msa plan memory`: where every byte of a memory would go, whether it fits, and the floor; and the
command that `msa plan train` (plan_train.py) stands beside it in."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from msa_train.commands import plan_train
from msa_train.commands.flags import add_flags, from_flags
from msa_train.commands.output import add_json, print_json
from msa_train.commands.placement import usual_compute
from msa_train.hardware import Card, Machine, parse_bandwidth, parse_bytes, parse_cards, parse_count
from msa_train.memory.planner.plan import BankSize, Plan, Serving, gb, plan, would_fit
from msa_train.model.config import ModelConfig


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("plan", help="what a memory or a run needs, before there is one")
    actions = parser.add_subparsers(required=True, metavar="WHAT")
    memory = actions.add_parser("memory", help="bytes of every part, what fits, least query time")
    memory.add_argument("--tokens", required=True, help="memory tokens, such as 100M")
    memory.add_argument("--model", required=True, help="4b, or the folder of an export")
    memory.add_argument(
        "--gpus", required=True, help="such as 2xA800-80GB, 2x48GB@864GB/s, or none (a CPU)"
    )
    memory.add_argument(
        "--host-ram", required=True, help="such as 512GiB, or 24GiB@30GB/s with its bandwidth"
    )
    memory.add_argument("--dtype", default="bfloat16", help="of the bank (default bfloat16)")
    add_flags(memory, Serving)
    memory.add_argument(
        "--compute", help="dtype of the weights: bfloat16 (default on GPUs), float32 (on a CPU)"
    )
    lengths = memory.add_mutually_exclusive_group()
    lengths.add_argument(
        "--document-tokens", type=int, help="of every document; default: one full chunk"
    )
    lengths.add_argument(
        "--chunks-per-1k", type=float,
        help="chunks of 1,000 tokens of your documents (`msa memory info` of a bank has both)",
    )  # fmt: skip
    add_json(memory)
    memory.set_defaults(run=_memory)
    plan_train.register(actions)


def _memory(options: argparse.Namespace) -> int:
    from msa_train.errors import ConfigError

    config, cards = _model(options.model), parse_cards(options.gpus)
    bank = BankSize.of_tokens(
        parse_count(options.tokens, "tokens"), config.router.chunk_size,
        options.document_tokens, options.chunks_per_1k, options.dtype,
    )  # fmt: skip
    serving = from_flags(Serving, options, compute=options.compute or usual_compute(bool(cards)))
    found = plan(config, bank, _machine(cards, options.host_ram), serving)
    if options.json:
        print_json(found.to_json())
    else:
        _print(found)
    return 0 if found.fits else ConfigError.exit_code


def _model(name: str) -> ModelConfig:
    from msa_train.errors import CheckpointError
    from msa_train.interop.published_config import from_published
    from msa_train.model.config import PRESETS

    if name.lower() in PRESETS:
        return PRESETS[name.lower()]
    try:
        raw = json.loads((Path(name) / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"model {name!r} is neither {', '.join(PRESETS)} nor an export's folder: {error}"
        ) from error
    return from_published(raw, "serving")


def _machine(cards: tuple[Card, ...], host_ram: str) -> Machine:
    size, _, speed = host_ram.partition("@")
    bandwidth = parse_bandwidth(speed, "bandwidth in host-ram") if speed else 0.0
    return Machine(cards, parse_bytes(size, "host-ram"), bandwidth)


def _print(found: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    bank, cards = found.bank, found.machine.cards
    console = Console(width=100, highlight=False)
    where = f"{len(cards)} x {cards[0].name} ({cards[0].source})" if cards else "a CPU"
    console.print(
        f"{bank.tokens:,} tokens, {bank.documents:,} documents, {bank.chunks:,} chunks on {where}"
    )
    names = {"device": "each GPU", "host": "host memory", "disk": "disk"}
    table = Table("where", "what", "per layer", "bytes")
    for column in table.columns[2:]:
        column.justify = "right"
    for place, name in names.items():
        items = [item for item in found.items if item.place == place]
        for item in items:
            layer = gb(item.per_layer) if item.per_layer else ""
            table.add_row(name, item.what, layer, gb(item.bytes) if item.bytes else "0")
        if items:
            table.add_row(name, _verdict(found, place), "", gb(found.need(place)), style="bold")
            table.add_section()
    console.print(table)
    for line in (*found.notes, _start_line(found), _floor_line(found)):
        console.print(line)
    if not found.fits:
        console.print(would_fit(found) or "No setting would fit: take a smaller memory.")


def _verdict(found: Plan, place: str) -> str:
    have = found.have(place)
    if have is None:
        return "needed"
    return f"needed of {gb(have)}: {'DOES NOT FIT' if place in found.lacking else 'fits'}"


def _start_line(found: Plan) -> str:
    start = found.start
    return (
        f"At the start {gb(start.bytes)} of router keys are compared with their checksums: "
        f"{start.core_seconds:,.1f} s of one core, divided by the threads of all ranks"
    )


def _floor_line(found: Plan) -> str:
    if found.floor is None:
        return "Floor per query: unknown without a bandwidth; give --host-ram SIZE@BANDWIDTH"
    floor = found.floor
    decides = "reading the keys" if floor.limit == "memory" else "multiplying them"
    return (
        f"Floor per query of {found.serving.question_tokens} tokens: {floor.ms:,.2f} ms, set by "
        f"{decides} ({gb(floor.bytes)} and {floor.flops / 1e12:,.2f} TFLOP on each)"
    )
