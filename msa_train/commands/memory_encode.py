"""`msa memory build`, `add` and `update`: documents in, encoded by one process or several."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

_DOCUMENT_TOKENS = 2048
# A GPU wants more tokens at once than a core's cache holds.
_GPU_TOKENS = 16384
_CORPUS = (
    'a .jsonl or .jsonl.gz file of {"id", "title", "text", "metadata", "added"}, - for such lines '
    "on standard input, or the word pydocs: the documentation of this Python's standard library"
)


def add_encoding_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("export", type=Path, help="folder of an exported model")
    parser.add_argument("corpus", help=_CORPUS)
    parser.add_argument(
        "--document-tokens",
        type=int,
        default=_DOCUMENT_TOKENS,
        metavar="N",
        help=f"longer documents are split at sentence ends (default {_DOCUMENT_TOKENS})",
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
        help="a rank that says nothing for so long fails the encoding (default 600)",
    )


def encode_new(options: argparse.Namespace) -> None:
    """Build a bank."""
    from msa_train.memory.bank.build import build_bank

    with _inputs(options) as inputs:
        build_bank(options.bank, dtype=options.dtype, **inputs)


def encode_more(options: argparse.Namespace, update: bool) -> None:
    """Add to a bank, or update its documents."""
    from msa_train.memory.bank.build import add_documents

    with _inputs(options) as inputs:
        add_documents(options.bank, update=update, **inputs)


@contextmanager
def _inputs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What both take; says afterwards which documents were split."""
    from msa_train.errors import ConfigError
    from msa_train.interop.export import load_export
    from msa_train.memory.bank.corpus import Splitting
    from msa_train.memory.ranks.encoding import EncodingRanks

    if options.ranks < 1:
        raise ConfigError(f"--ranks is {options.ranks}: give 1 or more")
    if not options.rank_timeout > 0:
        raise ConfigError(f"--rank-timeout is {options.rank_timeout}: give seconds, more than 0")
    model, _, tokenizer, fingerprint = load_export(options.export)
    splitting = Splitting(tokenizer, options.document_tokens)
    documents, share_read = _corpus(options.corpus, tokenizer)
    ranks = None
    if options.ranks == 1:
        model = _placed(model, 0)
    else:
        load = partial(_load, options.export, fingerprint)
        ranks = EncodingRanks(options.ranks, load, options.rank_timeout)
        model = model.to("meta")  # the ranks have the weights
    yield {
        "model": model,
        "tokenizer": tokenizer,
        "documents": splitting(documents),
        "fingerprint": fingerprint,
        "token_budget": _token_budget(),
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
    """The documents, and how much of them is read."""
    from msa_train.memory.bank.corpus import CorpusFile, pydocs

    if name == "pydocs":
        return pydocs(tokenizer)
    corpus = CorpusFile(name)
    return corpus.documents(), corpus.share_read


def _load(export: Path, fingerprint: dict[str, str], rank: int) -> Any:
    """What a rank encodes with, as its writer's process does."""
    from msa_train.errors import CheckpointError
    from msa_train.interop.export import load_export
    from msa_train.memory.bank.encode import BlockEncoder

    model, _, tokenizer, found = load_export(export)
    if found != fingerprint:
        raise CheckpointError(f"{export} changed while it was read: start again")
    return BlockEncoder(_placed(model, rank), tokenizer, _token_budget())


def _placed(model: Any, rank: int) -> Any:
    """On a GPU of the rank's own, where there are GPUs."""
    import torch

    if not torch.cuda.is_available():
        return model
    return model.to(f"cuda:{rank % torch.cuda.device_count()}")


def _token_budget() -> int:
    import torch

    from msa_train.memory.bank.encode import TOKEN_BUDGET

    return _GPU_TOKENS if torch.cuda.is_available() else TOKEN_BUDGET
