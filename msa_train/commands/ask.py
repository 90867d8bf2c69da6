"""`msa ask`: ask a memory bank."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msa_train.commands.output import add_hybrid, add_json, add_retrieval, print_json
from msa_train.commands.placement import add_placement, placement

SHOWN_DOCUMENTS = 5


def register(commands: argparse._SubParsersAction) -> None:
    ask = commands.add_parser("ask", help="ask a memory bank")
    ask.add_argument("export", type=Path, help="folder of the model that built the bank")
    ask.add_argument("bank", type=Path)
    ask.add_argument("questions", nargs="+", metavar="question")
    add_retrieval(ask)
    add_hybrid(ask, "with --retrieval router: BM25 over the bank's texts chooses with the routers")
    ask.add_argument(
        "--temperature", type=float, default=0.0, help="0 (default): the likeliest token, always"
    )
    ask.add_argument(
        "--top-p", type=float, default=1.0, help="draw from the likeliest tokens of this share"
    )
    ask.add_argument("--seed", type=int, default=0, help="the same seed draws the same text")
    ask.add_argument("--max-tokens", type=int, default=128, help="of an answer (default 128)")
    ask.add_argument(
        "--where", metavar="JSON",
        help='answer from these documents only: {"ids": [..], "numbers": [..], "metadata": '
        '{key: value or [values]}, "added_after": ms, "added_before": ms}, all that is given holds',
    )  # fmt: skip
    add_placement(ask)
    add_json(ask)
    ask.set_defaults(run=_ask)


def _ask(options: argparse.Namespace) -> int:
    from msa_train.errors import BankError, ConfigError
    from msa_train.interop.export import load_export
    from msa_train.memory.bank.snapshot import BankSnapshot
    from msa_train.memory.engine.engine import MemoryEngine
    from msa_train.memory.engine.interleave import InterleaveLimits, usual_mode
    from msa_train.memory.engine.sampling import Sampling
    from msa_train.memory.search.hybrid import WordIndexes
    from msa_train.memory.search.loader import BankLoader, bank_view
    from msa_train.memory.search.settings import TierSettings

    if blank := [question for question in options.questions if not question.strip()]:
        raise ConfigError(f"a question is {blank[0]!r}: ask something")
    indexes = WordIndexes() if options.hybrid else None
    only = None if options.where is None else _filter(options.where)
    sampling = Sampling(options.temperature, options.top_p, options.seed)
    limits = InterleaveLimits(answer_tokens=options.max_tokens)
    loaded = load_export(options.export, placement(options))
    mode = options.retrieval or usual_mode(loaded.model.config)
    if options.hybrid and mode != "router":
        raise ConfigError(
            f"--hybrid {options.hybrid} chooses the texts to read together with the routers, and "
            f"--retrieval is {mode}: give --retrieval router, or leave --hybrid out"
        )
    bank = BankSnapshot.open(options.bank, loaded.fingerprint)
    words = None if indexes is None else indexes.of(bank)
    loader = BankLoader(TierSettings(), loaded.model.device)
    view = bank_view(bank, loaded.model.config.router, loader, words)
    if only is not None:
        view = view.restricted(only.allowed(bank))
        if len(bank) and not len(view):
            raise ConfigError(
                f"--where {options.where}: no document of {options.bank} is such a one"
            )
    if not len(view):
        raise BankError(f"{options.bank} has no documents to answer from: msa memory add")
    engine = MemoryEngine(loaded.model, loaded.tokenizer, view)
    if options.json:
        answers = engine.ask(options.questions, mode, limits, sampling)
        print_json([answer.to_json() for answer in answers])
        return 0
    for question in options.questions:
        print(f"\n? {question}")
        show_stream(engine.stream(question, mode, limits, sampling))
    return 0


def _filter(where: str) -> Any:
    """A DocumentFilter. Raises ConfigError for anything else."""
    from msa_train.errors import BankError, ConfigError
    from msa_train.memory.bank.filters import DocumentFilter

    try:
        return DocumentFilter.from_json(json.loads(where))
    except (BankError, RecursionError) as error:
        raise ConfigError(f"--where {where:.80}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"--where {where:.80}: not JSON ({error})") from None


def show_stream(events: Iterator[Any]) -> None:
    """Print one question's events as they come: documents with scores, texts, the answer."""
    from msa_train.memory.engine.events import Evidence, Finished, Routed, TextPiece

    stage = None
    for event in events:
        if isinstance(event, Routed):
            _show_routed(event)
            stage = None
        elif isinstance(event, TextPiece):
            if event.stage != stage:
                print(f"  {'writes' if event.stage == 'ids' else '='} ", end="")
                stage = event.stage
            print(_printable(event.text), end="", flush=True)
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
    chosen = event.chosen
    scored = "mean" if chosen.fused is None else "mean; BM25; both as z-scores"
    print(f"  round {event.round}: routed to (score in each router layer, {scored})")
    by_layer = {
        layer: {each.number: each.score for each in selected}
        for layer, selected in chosen.layers.items()
    }
    for number, mean, more in _ranked(chosen)[:SHOWN_DOCUMENTS]:
        scores = "  ".join(
            f"L{layer} {ranking[number]:.3f}" if number in ranking else f"L{layer}   -  "
            for layer, ranking in by_layer.items()
        )
        print(f"    [{number}]  {scores}  mean {mean:.3f}{more}")


def _ranked(chosen: Any) -> list[tuple[int, float, str]]:
    """(number, vote, what else is said of it), best first."""
    if chosen.fused is None:
        return [(number, vote, "") for number, vote in chosen.voted]
    return [
        (each.number, each.vote, f"  BM25 {each.bm25:.2f}  both {each.score:.2f}")
        for each in chosen.fused
    ]


def _short(text: str, width: int = 88) -> str:
    line = _printable(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"


def _printable(text: str) -> str:
    """Without what would command the terminal: documents come from anywhere."""
    return "".join(each if each.isprintable() or each in "\n\t" else "\ufffd" for each in text)
