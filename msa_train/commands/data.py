"""`msa data`: convert and clean datasets, build and upload the shards of a run, look into them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from msa_train.commands import clean, convert, mine, reading
from msa_train.commands.output import add_config, add_json, config_arguments, print_json

if TYPE_CHECKING:
    from data_pipeline.schema import Piece
    from data_pipeline.settings import TrainingCorpus
    from data_pipeline.shards.manifest import ShardManifest
    from data_pipeline.tokenizer import Tokenizer
    from msa_train.config import Config


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "data", help="convert, clean and mine datasets; build shards, look at samples"
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    build = actions.add_parser("build", help="train the tokenizer and build OUTPUT/shards")
    add_config(build)
    add_json(build)
    how = build.add_mutually_exclusive_group()
    how.add_argument("--part", metavar="K/N", help="build every N-th shard; on a shared folder")
    how.add_argument("--seal", action="store_true", help="put the parts together; build none")
    build.set_defaults(run=_build)
    upload = actions.add_parser("upload", help="copy the built shards of a run into a bucket")
    add_config(upload)
    add_json(upload)
    upload.add_argument(
        "--to",
        required=True,
        metavar="URL",
        help="s3://BUCKET/PATH, under which shards and held_out are to be",
    )
    upload.set_defaults(run=_upload)
    show = actions.add_parser("show", help="print one sample as the model sees it")
    add_config(show)
    show.add_argument("--sample", type=int, default=0, help="which sample (default 0)")
    show.add_argument("--contexts", type=int, default=3, help="how many of its contexts")
    show.set_defaults(run=_show)
    convert.register(actions)
    clean.register(actions)
    mine.register(actions)
    reading.register(actions)


def _build(options: argparse.Namespace) -> int:
    from msa_train.config import load_config

    config = load_config(config_arguments(options))
    if options.part is not None:
        return _build_a_part(config, options.part, options.json)
    manifest = _build_once(config, options.seal)
    if options.json:
        print_json(asdict(manifest))
    else:
        for i, stage in enumerate(manifest.stages):
            print(
                f"stage {i}: {manifest.steps[i]} steps, {stage.samples} banks"
                f"{f' read {stage.epochs} times' if stage.epochs > 1 else ''}, "
                f"{stage.documents} documents "
                f"({stage.document_tokens:.0f} tokens a bank), {stage.contexts} contexts "
                f"({stage.context_tokens:.0f} tokens a bank)"
            )
    return 0


def _build_a_part(config: Config, text: str, as_json: bool) -> int:
    from data_pipeline.shards.build import build_part
    from data_pipeline.shards.manifest import ShardManifest
    from data_pipeline.shards.parts import BuildPart
    from msa_train.errors import ConfigError

    part, folder = BuildPart.of(text), config.path / "shards"
    if folder.exists():
        manifest = ShardManifest.load(folder)
        if not manifest.matches(config.corpus):
            raise ConfigError(
                f"{folder} is of other settings: {manifest.differences(config.corpus)}: shards are "
                "made longer without --part, and built anew under another output"
            )
        print(f"{folder} is there already, of these settings", file=sys.stderr)
        return 0
    shards = build_part(config.corpus, folder, part)
    if as_json:
        print_json({"part": part.number, "parts": part.count, "shards": shards})
    else:
        print(f"part {part}: {shards} shards; when all parts are there: msa data build --seal")
    return 0


def _build_once(config: Config, seal: bool = False) -> ShardManifest:
    """The shards of a run, and its held-out ones, unless exactly these are there.

    Where those of shorter stages are there, or of fewer, the run is being made longer.
    """
    from data_pipeline.shards.build import finish_exchange
    from data_pipeline.shards.manifest import ShardManifest
    from data_pipeline.tokenizer import load_tokenizer

    shards, held_out = config.path / "shards", config.path / "held_out"
    finish_exchange(shards)
    finish_exchange(held_out)
    longer = shards.exists() and ShardManifest.load(shards).begins(config.corpus)
    with _nobody_trains(config.path) if longer else nullcontext():
        manifest = _build_set(config.corpus, shards, None, False, longer, seal)
        if config.training.held_out_every:
            tokenizer = load_tokenizer(shards / "tokenizer")
            _build_set(config.held_out, held_out, tokenizer, True, longer)
    return manifest


@contextmanager
def _nobody_trains(output: Path) -> Iterator[None]:
    """While shards are exchanged, which a run that is at work reads."""
    from data_pipeline.locks import FileLock, HeldError
    from msa_train.errors import RankError
    from msa_train.training.output_lock import LOCK

    try:
        with FileLock(output / LOCK, "data build"):
            yield
    except HeldError as error:
        raise RankError(
            f"{output} is being trained in by {error}, from the shards that would be made longer: "
            "wait until it has ended"
        ) from None


def _build_set(
    corpus: TrainingCorpus,
    folder: Path,
    tokenizer: Tokenizer | None,
    held_out: bool,
    again: bool,
    seal: bool = False,
) -> ShardManifest:
    from data_pipeline.shards.build import build_shards, rebuild_shards
    from data_pipeline.shards.manifest import ShardManifest
    from msa_train.errors import ConfigError

    if not folder.exists():
        return build_shards(corpus, folder, None, tokenizer, held_out, seal)
    manifest = ShardManifest.load(folder)
    if manifest.matches(corpus):
        print(f"{folder} is there already, of these settings", file=sys.stderr)
        return manifest
    if again and not seal:
        print(f"{folder} is built again, longer, by its own tokenizer", file=sys.stderr)
        return rebuild_shards(corpus, folder, held_out=held_out)
    raise ConfigError(
        f"{folder} was built from other settings: {manifest.differences(corpus)}: remove it, or "
        "set another output"
    )


def _upload(options: argparse.Namespace) -> int:
    from data_pipeline.shards.upload import upload_shards
    from msa_train.config import load_config

    config = load_config(config_arguments(options))
    url = options.to.rstrip("/")
    names = ["shards"]
    if config.training.held_out_every:
        names.insert(0, "held_out")  # a run looks for it once it has its shards
    done = {name: upload_shards(config.path / name, f"{url}/{name}") for name in names}
    if options.json:
        print_json({name: asdict(each) for name, each in done.items()})
        return 0
    for name, each in done.items():
        print(f"{url}/{name}: {each.files} files copied ({each.bytes} bytes), {each.kept} kept")
    print(f"train from there with --training.shards {url}/shards")
    return 0


def _show(options: argparse.Namespace) -> int:
    from data_pipeline.protocol import context_pieces, document_pieces
    from data_pipeline.shards.reader import ShardReader
    from msa_train.config import load_config
    from msa_train.errors import ConfigError

    config = load_config(config_arguments(options))
    reader = ShardReader(config.shards, cache=config.path / "shard-cache")
    if not 0 <= options.sample < len(reader):
        raise ConfigError(f"--sample {options.sample}: give 0 to {len(reader) - 1}")
    sample = reader[options.sample]
    print(f"source {sample.source}: {len(sample.documents)} documents, the first of them:")
    first = sample.documents[0]
    print("".join(piece.text for piece in document_pieces(first.number, first.text)))
    for context in sample.contexts[: options.contexts]:
        print(f"\n--- {context.kind}, positives {list(context.positives)}")
        print("".join(_marked(piece) for piece in context_pieces(context)))
    print("\n(what the model is asked to write stands in «»)")
    return 0


def _marked(piece: Piece) -> str:
    return f"«{piece.text}»" if piece.label else piece.text
