"""`msa memory`: make a memory bank, change it, look at it."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from msa_train.commands.memory_encode import add_encoding_arguments, encode_more, encode_new
from msa_train.commands.output import add_json, print_json


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("memory", help="make a memory bank, change it, look at it")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    build = _encoding(actions, "build", "encode a corpus into a new bank", _build)
    build.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        default="float16",
        help="of pooled states and router keys (default float16)",
    )
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
    from msa_train.errors import ConfigError
    from msa_train.memory.bank.writer import BankWriter

    if not options.ids and not options.numbers:
        raise ConfigError("memory remove: give --ids or --numbers")
    with BankWriter(options.bank, "remove") as writer:
        writer.remove(options.numbers, options.ids)
    return _info(options)


def _compact(options: argparse.Namespace) -> int:
    from msa_train.memory.bank.writer import BankWriter

    with BankWriter(options.bank, "compact") as writer:
        writer.compact()
    return _info(options)


def _verify(options: argparse.Namespace) -> int:
    from msa_train.errors import BankError
    from msa_train.memory.bank.verify import verify_bank

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
    from msa_train.memory.bank.snapshot import BankSnapshot

    bank = BankSnapshot.open(options.bank)
    if options.json and not options.out:
        print_json([document.to_line() for document in bank])
        return 0
    with _opened(options.out) as out:
        for document in bank:
            print(json.dumps(document.to_line(), ensure_ascii=False), file=out)
    return 0


@contextmanager
def _opened(out: Path | None) -> Iterator[TextIO]:
    """A new file, or standard output."""
    from data_pipeline import files
    from msa_train.errors import ConfigError

    if out is None:
        yield sys.stdout
        return
    with ExitStack() as stack:
        try:
            if out.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            partial = stack.enter_context(files.whole(out))
            file = stack.enter_context(partial.open("x", encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"--out {out}: {error.strerror}; give a file to make") from error
        yield file


def _info(options: argparse.Namespace) -> int:
    from msa_train.memory.bank.snapshot import BankSnapshot

    info = BankSnapshot.open(options.bank).info()
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
