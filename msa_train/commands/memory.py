"""`msa memory` and `msa ask`: build a memory bank from documents, look at it, ask it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msa_train.commands.output import add_json, print_json

SHOWN_DOCUMENTS = 5


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("memory", help="build a memory bank, look at it")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    build = actions.add_parser("build", help="encode a corpus into a new bank")
    build.add_argument("export", type=Path, help="folder of an exported model")
    build.add_argument(
        "corpus",
        help='a .jsonl or .jsonl.gz file of {"id", "title", "text"}, or the word pydocs: the '
        "documentation of this Python's standard library",
    )
    build.add_argument("bank", type=Path, help="folder to make")
    build.add_argument("--dtype", default="float16", help="float16 (default), bfloat16, float32")
    add_json(build)
    build.set_defaults(run=_build)
    info = actions.add_parser("info", help="counts, sizes and origin of a bank")
    info.add_argument("bank", type=Path)
    info.add_argument("--verify", action="store_true", help="compare every file's checksum")
    add_json(info)
    info.set_defaults(run=_info)
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
    add_json(ask)
    ask.set_defaults(run=_ask)


def _build(options: argparse.Namespace) -> int:
    from msa_train.interop.export import load_export
    from msa_train.memory.bank import MemoryBank
    from msa_train.memory.build import build_bank

    model, _, tokenizer, fingerprint = load_export(options.export)
    documents = _documents(options.corpus, tokenizer)
    build_bank(options.bank, model, tokenizer, documents, fingerprint, options.dtype)
    _show_info(MemoryBank.open(options.bank).info(), options.json)
    return 0


def _documents(corpus: str, tokenizer: Any) -> Iterator[Any]:
    from msa_train.memory.corpus import read_corpus

    if corpus != "pydocs":
        return read_corpus(corpus)
    from data_pipeline.sources.pydocs import PydocsConfig, PydocsSource

    entries = PydocsSource(PydocsConfig(), tokenizer).entries
    return (entry.document(number) for number, entry in enumerate(entries))


def _info(options: argparse.Namespace) -> int:
    from msa_train.memory.bank import MemoryBank

    _show_info(MemoryBank.open(options.bank, verify=options.verify).info(), options.json)
    return 0


def _show_info(info: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(info)
        return
    print(
        f"{info['path']}: {info['documents']:,} documents, {info['tokens']:,} tokens, "
        f"{info['chunks']:,} chunks, {info['bytes'] / 1e6:,.1f} MB of {info['dtype']} in "
        f"router layers {info['layers']}"
    )


def _ask(options: argparse.Namespace) -> int:
    from msa_train.interop.export import load_export
    from msa_train.memory.bank import MemoryBank
    from msa_train.memory.engine import MemoryEngine

    model, config, tokenizer, fingerprint = load_export(options.export)
    bank = MemoryBank.open(options.bank, fingerprint)
    engine = MemoryEngine(model, tokenizer, bank.view(config.router))
    if options.json:
        answers = engine.ask(options.questions, options.retrieval)
        print_json([answer.to_json() for answer in answers])
        return 0
    for question in options.questions:
        print(f"\n? {question}")
        show_stream(engine.stream(question, options.retrieval))
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
    by_layer = {layer: dict(ranking) for layer, ranking in event.chosen.layers.items()}
    for number, mean in event.chosen.voted[:SHOWN_DOCUMENTS]:
        scores = "  ".join(
            f"L{layer} {ranking[number]:.3f}" if number in ranking else f"L{layer}   -  "
            for layer, ranking in by_layer.items()
        )
        print(f"    [{number}]  {scores}  mean {mean:.3f}")


def _short(text: str, width: int = 88) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
