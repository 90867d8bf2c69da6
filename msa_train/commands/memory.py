"""`msa memory`: make a memory bank, change it, look at it.

`build`, `add` and `update` encode documents, in this process or in several.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from data_pipeline.splitting import DOCUMENT_TOKENS
from msa_train.commands.output import add_json, print_json
from msa_train.commands.placement import add_placement, placement

if TYPE_CHECKING:
    from msa_train.interop.export import Placement

_CORPUS = (
    'a .jsonl or .jsonl.gz file of {"id", "title", "text", "metadata", "added"}, - for such lines '
    "on standard input, a dataset folder (its titles stand over the texts), or the word pydocs: "
    "the documentation of this Python's standard library"
)


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
    update = partial(_add, update=True)
    _encoding(actions, "update", "encode documents anew that take their ids' places", update)
    remove = _action(
        actions, "remove", "remove documents with all their parts; their numbers never come back",
        _remove,
    )  # fmt: skip
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
    parser.add_argument("export", type=Path, help="folder of an exported model")
    parser.add_argument("corpus", help=_CORPUS)
    add_placement(parser)
    parser.add_argument(
        "--document-tokens",
        type=int,
        default=DOCUMENT_TOKENS,
        metavar="N",
        help=f"longer documents are split at sentence ends (default {DOCUMENT_TOKENS})",
    )
    parser.add_argument(
        "--ranks",
        type=int,
        default=1,
        metavar="N",
        help="processes that encode; each has a GPU of its own where there are GPUs (default 1)",
    )
    parser.add_argument(
        "--rank-timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="an encoding fails when a rank is silent for longer (default 600)",
    )
    return parser


def _build(options: argparse.Namespace) -> int:
    from msa_train.memory.bank.build import build_bank

    with _inputs(options) as inputs:
        build_bank(options.bank, dtype=options.dtype, **inputs)
    return _info(options)


def _add(options: argparse.Namespace, update: bool = False) -> int:
    from msa_train.memory.bank.build import add_documents

    with _inputs(options) as inputs:
        add_documents(options.bank, update=update, **inputs)
    return _info(options)


@contextmanager
def _inputs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What building and adding take; says afterwards which documents were split."""
    from msa_train.errors import ConfigError
    from msa_train.interop.export import load_export
    from msa_train.memory.bank.corpus import Splitting
    from msa_train.memory.ranks.encoding import EncodingRanks

    if options.ranks < 1:
        raise ConfigError(f"--ranks is {options.ranks}: give 1 or more")
    if not options.rank_timeout > 0:
        raise ConfigError(f"--rank-timeout is {options.rank_timeout}: give seconds, more than 0")
    placed = placement(options)
    if options.ranks > 1 and placed.device not in ("cpu", "cuda:0"):
        raise ConfigError(
            f"--device {options.device} with --ranks {options.ranks}: ranks take the GPUs in their "
            "order from the first; give cuda, or set CUDA_VISIBLE_DEVICES"
        )
    # Where ranks encode, they have the weights, and this process their shapes.
    here = placed if options.ranks == 1 else replace(placed, device="meta")
    loaded = load_export(options.export, here)
    model, tokenizer, fingerprint = loaded.model, loaded.tokenizer, loaded.fingerprint
    splitting = Splitting(tokenizer, options.document_tokens)
    documents, share_read = _corpus(options.corpus, tokenizer)
    ranks = None
    if options.ranks > 1:
        load = partial(_load, options.export, placed, fingerprint)
        ranks = EncodingRanks(options.ranks, load, options.rank_timeout)
    yield {
        "model": model,
        "tokenizer": tokenizer,
        "documents": splitting(documents),
        "fingerprint": fingerprint,
        "ranks": ranks,
        "expected": lambda: splitting.expected(share_read),
    }
    if splitting.split:
        print(
            f"{splitting.split:,} documents of more than {splitting.limit:,} tokens became "
            f"{splitting.parts:,}",
            file=sys.stderr,
        )


def _corpus(name: str, tokenizer: Any) -> tuple[Iterable[Any], Callable[[], float | None]]:
    """The documents, and how much of them is read. Those of a dataset folder begin with their
    title, as training and `msa router` read them."""
    from data_pipeline.dataset import find_file
    from data_pipeline.sources.dataset_tables import shown_text
    from msa_train.memory.bank.corpus import CorpusFile, pydocs

    if name == "pydocs":
        return pydocs(tokenizer)
    if not Path(name).is_dir():
        corpus = CorpusFile(name)
        return corpus.documents(), corpus.share_read
    corpus = CorpusFile(find_file(Path(name), "corpus"))
    documents = corpus.documents()
    return (replace(d, text=shown_text(d.title, d.text)) for d in documents), corpus.share_read


def _load(export: Path, placed: Placement, fingerprint: dict[str, str], rank: int) -> Any:
    """What a rank encodes with, as its writer's process does."""
    import torch

    from msa_train.errors import CheckpointError
    from msa_train.interop.export import load_export
    from msa_train.memory.bank.encode import BlockEncoder

    if placed.device != "cpu":
        placed = replace(placed, device=f"cuda:{rank % torch.cuda.device_count()}")
    loaded = load_export(export, placed)
    if loaded.fingerprint != fingerprint:
        raise CheckpointError(f"{export} changed while it was read: start again")
    return BlockEncoder(loaded.model, loaded.tokenizer)


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
    if out.exists():
        raise ConfigError(f"--out {out}: File exists; give a file to make")
    with ExitStack() as stack:
        try:
            aside = stack.enter_context(files.whole(out))
            file = stack.enter_context(aside.open("x", encoding="utf-8"))
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
