"""`msa memory` and `msa ask`: make a memory bank, change it, look at it, ask it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msa_train.commands.memory_encode import add_encoding_arguments, encode_more, encode_new
from msa_train.commands.output import add_json, print_json

SHOWN_DOCUMENTS = 5


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("memory", help="make a memory bank, change it, look at it")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    build = _encoding(actions, "build", "encode a corpus into a new bank", _build)
    build.add_argument("--dtype", default="float16", help="float16 (default), bfloat16, float32")
    _encoding(actions, "add", "encode more documents, whose ids are new", _add)
    _encoding(actions, "update", "encode documents anew that take their ids' places", _update)
    remove = _action(actions, "remove", "remove documents; their numbers never come back", _remove)
    remove.add_argument("--ids", nargs="+", default=[], metavar="ID")
    remove.add_argument("--numbers", nargs="+", default=[], type=int, metavar="N")
    _action(actions, "compact", "free what removed documents take up", _compact)
    _action(actions, "verify", "read every byte and compare it with its checksum", _verify)
    _action(actions, "info", "counts, sizes and origin of a bank", _info)
    texts = _action(actions, "texts", "the documents as JSON lines, as build reads them", _texts)
    texts.add_argument("--out", type=Path, help="file to make (default: standard output)")
    ask = commands.add_parser("ask", help="ask a memory bank")
    ask.add_argument("export", type=Path, help="folder of the model that built the bank")
    ask.add_argument("bank", type=Path)
    ask.add_argument("questions", nargs="+", metavar="question")
    ask.add_argument(
        "--retrieval",
        choices=("generate", "router", "memory"),
        default="generate",
        help="who names the documents to read: the model (as published), the routers' vote, or "
        "nobody: answer from pooled memory alone",
    )
    ask.add_argument(
        "--temperature", type=float, default=0.0, help="0 (default): the likeliest token, always"
    )
    ask.add_argument(
        "--top-p", type=float, default=1.0, help="draw from the likeliest tokens of this share"
    )
    ask.add_argument("--seed", type=int, default=0, help="the same seed draws the same text")
    ask.add_argument(
        "--max-tokens", type=int, help="of an answer (default: as many as the engine allows)"
    )
    add_json(ask)
    ask.set_defaults(run=_ask)


def _action(actions: Any, name: str, meaning: str, run: Any) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=meaning)
    parser.add_argument("bank", type=Path, help="folder of the bank")
    add_json(parser)
    parser.set_defaults(run=run)
    return parser


def _encoding(actions: Any, name: str, meaning: str, run: Any) -> argparse.ArgumentParser:
    parser = _action(actions, name, meaning, run)
    add_encoding_arguments(parser)
    return parser


def _build(options: argparse.Namespace) -> int:
    encode_new(options)
    return _info(options)


def _add(options: argparse.Namespace) -> int:
    encode_more(options, update=False)
    return _info(options)


def _update(options: argparse.Namespace) -> int:
    encode_more(options, update=True)
    return _info(options)


def _remove(options: argparse.Namespace) -> int:
    from msa_train.errors import BankError, ConfigError
    from msa_train.memory.storage.writer import BankWriter

    if not options.ids and not options.numbers:
        raise ConfigError("memory remove: give --ids or --numbers")
    with BankWriter(options.bank, "remove") as writer:
        numbers = list(options.numbers)
        for id in options.ids:
            found = writer.bank.numbers_of(id)
            if not found:
                raise BankError(f"{options.bank} has no document of id {id!r}: none was removed")
            numbers += found
        writer.remove(numbers)
    return _info(options)


def _compact(options: argparse.Namespace) -> int:
    from msa_train.memory.storage.writer import BankWriter

    with BankWriter(options.bank, "compact") as writer:
        writer.compact()
    return _info(options)


def _verify(options: argparse.Namespace) -> int:
    from msa_train.errors import BankError
    from msa_train.memory.storage.verify import verify_bank

    report = verify_bank(options.bank)
    if options.json:
        print_json(report)
    else:
        for problem in report["problems"]:
            print(problem)
        print(
            f"{report['path']}: {report['documents']:,} documents in {report['segments']} "
            f"segments, {report['bytes'] / 1e6:,.1f} MB, {len(report['problems'])} problems, "
            f"{report['orphan_bytes']:,} bytes of no use"
        )
    return BankError.exit_code if report["problems"] else 0


def _texts(options: argparse.Namespace) -> int:
    from msa_train.memory.storage.bank import MemoryBank

    bank = MemoryBank.open(options.bank)
    if options.json and not options.out:
        print_json([document.to_line() for document in bank])
        return 0
    out = options.out.open("x", encoding="utf-8") if options.out else sys.stdout
    try:
        for document in bank:
            print(json.dumps(document.to_line(), ensure_ascii=False), file=out)
    finally:
        if options.out:
            out.close()
    return 0


def _info(options: argparse.Namespace) -> int:
    from msa_train.memory.storage.bank import MemoryBank

    info = MemoryBank.open(options.bank).info()
    if options.json:
        print_json(info)
        return 0
    removed = f" ({info['removed']:,} removed)" if info["removed"] else ""
    print(
        f"{info['path']}: {info['documents']:,} documents{removed}, {info['tokens']:,} tokens, "
        f"{info['chunks']:,} chunks, {info['bytes'] / 1e6:,.1f} MB of {info['dtype']} in "
        f"router layers {info['layers']}"
    )
    return 0


def _ask(options: argparse.Namespace) -> int:
    from msa_train.interop.export import load_export
    from msa_train.memory.engine import MemoryEngine
    from msa_train.memory.interleave import Limits
    from msa_train.memory.sampling import Sampling
    from msa_train.memory.storage.bank import MemoryBank
    from msa_train.memory.tiers import bank_view

    sampling = Sampling(options.temperature, options.top_p, options.seed)
    limits = Limits() if options.max_tokens is None else Limits(answer_tokens=options.max_tokens)
    model, config, tokenizer, fingerprint = load_export(options.export)
    bank = MemoryBank.open(options.bank, fingerprint)
    engine = MemoryEngine(model, tokenizer, bank_view(bank, config.router))
    if options.json:
        answers = engine.ask(options.questions, options.retrieval, limits, sampling)
        print_json([answer.to_json() for answer in answers])
        return 0
    for question in options.questions:
        print(f"\n? {question}")
        show_stream(engine.stream(question, options.retrieval, limits, sampling))
    return 0


def show_stream(events: Iterator[Any]) -> None:
    """Print one question's events as they come: documents with scores, texts, the answer."""
    from msa_train.memory.answers import Evidence, Finished, Routed, TextPiece

    stage = None
    for event in events:
        if isinstance(event, Routed):
            _show_routed(event)
            stage = None
        elif isinstance(event, TextPiece):
            if event.stage != stage:
                print(f"  {'writes' if event.stage == 'ids' else '='} ", end="")
                stage = event.stage
            print(event.text, end="", flush=True)
        elif isinstance(event, Evidence):
            print()
            for document in event.documents[:SHOWN_DOCUMENTS]:
                print(f"  reads [{document.number}] {_short(document.text)}")
            if len(event.documents) > SHOWN_DOCUMENTS:
                print(f"  reads {len(event.documents) - SHOWN_DOCUMENTS} more")
        elif isinstance(event, Finished):
            for reason in event.answer.forced:
                print(f"\n  ({reason})", end="")
            print(f"\n  {event.answer.seconds:.2f} s")
    sys.stdout.flush()


def _show_routed(event: Any) -> None:
    print(f"  round {event.round}: routed to (score in each router layer, mean)")
    by_layer = {
        layer: {each.number: each.score for each in selected}
        for layer, selected in event.chosen.layers.items()
    }
    for number, mean in event.chosen.voted[:SHOWN_DOCUMENTS]:
        scores = "  ".join(
            f"L{layer} {ranking[number]:.3f}" if number in ranking else f"L{layer}   -  "
            for layer, ranking in by_layer.items()
        )
        print(f"    [{number}]  {scores}  mean {mean:.3f}")


def _short(text: str, width: int = 88) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
