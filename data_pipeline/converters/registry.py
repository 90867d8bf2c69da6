"""The formats that can be converted, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.converters.beir import beir
from data_pipeline.converters.builder import Builder, Converted
from data_pipeline.converters.dpr import dpr
from data_pipeline.converters.dureader import dureader
from data_pipeline.converters.hotpotqa import hotpotqa
from data_pipeline.converters.kilt import kilt
from data_pipeline.converters.msmarco import msmarco
from data_pipeline.converters.musique import musique
from data_pipeline.converters.narrativeqa import narrativeqa
from data_pipeline.converters.own_schema import jsonl
from data_pipeline.converters.sentence_transformers import sentence_transformers
from data_pipeline.converters.squad import squad
from data_pipeline.converters.text import text
from data_pipeline.converters.triviaqa import triviaqa
from data_pipeline.converters.two_wiki import two_wiki
from data_pipeline.dataset import DatasetWriter
from data_pipeline.errors import DataError


@dataclass(frozen=True)
class Converter:
    """A format. read: (builder, inputs, splits, *, options) reads it into a builder.

    An option without a default must be given.
    """

    read: Callable[..., None]
    description: str


CONVERTERS = {
    "jsonl": Converter(
        jsonl, "this project's own form: a folder, or a corpus and questions (also csv, tsv)"
    ),
    "squad": Converter(
        squad, "SQuAD, CMRC 2018, DRCD, DuReader-robust: json files, or Hugging Face's rows"
    ),
    "hotpotqa": Converter(
        hotpotqa, "HotpotQA: json files or rows, two-step and comparison questions"
    ),
    "musique": Converter(musique, "MuSiQue: jsonl files, questions of two to four steps"),
    "2wiki": Converter(two_wiki, "2WikiMultihopQA: json files or rows, steps from their evidences"),
    "triviaqa": Converter(
        triviaqa, "TriviaQA: json files, and --evidence, its folder of documents"
    ),
    "dureader": Converter(dureader, "DuReader 2.0: jsonl files, raw or preprocessed"),
    "msmarco": Converter(
        msmarco, "MS MARCO: triples of texts; of ids, or qrels, with --collection, --queries"
    ),
    "beir": Converter(
        beir, "BEIR: a folder of corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv (or TREC's)"
    ),
    "dpr": Converter(dpr, "DPR: json files of questions with positive and negative contexts"),
    "kilt": Converter(
        kilt, "KILT: jsonl files, and --knowledge, its source; --all-passages takes all of it"
    ),
    "sentence_transformers": Converter(
        sentence_transformers, "its embedding training data: jsonl pairs, triplets and sets"
    ),
    "narrativeqa": Converter(
        narrativeqa,
        "NarrativeQA: its folder; --stories takes tmp/ID.content instead of the summaries",
    ),
    "text": Converter(text, "folders of .txt and .md files; --questions adds those about them"),
}


def convert(
    format: str,
    inputs: Sequence[Path | str],
    out: Path | str,
    splits: Sequence[str] = (),
    strict: bool = False,
    **options: Any,
) -> Converted:
    """Read `inputs` of a format and write the dataset folder `out`, whole or not at all.

    splits: the split of all files, or one for each; for a folder that holds several, those to
    take. Empty: train, or all of a folder in this project's own form. strict: refuse judgements of
    queries and passages that are not there, which are left out and counted otherwise. options:
    keywords of `read`. Raises DataError for a format, option or input that is wrong, naming the
    place in the input.
    """
    converter = CONVERTERS.get(format)
    if converter is None:
        raise DataError(f"there is no format {format!r}: give one of {', '.join(CONVERTERS)}")
    _check_options(format, converter, options)
    if not inputs:
        raise DataError(f"nothing to convert: give files or a folder in the format {format}")
    for split in splits:
        if not split or "/" in split:  # a split is a part of a file's name
            raise DataError(f"the split {split!r} cannot be in a file's name: give another")
    with DatasetWriter(out) as writer:
        builder = Builder(writer, strict)
        converter.read(builder, [Path(path) for path in inputs], tuple(splits), **options)
        return builder.converted()


def _check_options(format: str, converter: Converter, options: dict[str, Any]) -> None:
    found = inspect.signature(converter.read).parameters.values()
    takes = {option.name: option for option in found if option.kind is option.KEYWORD_ONLY}
    for name in options.keys() - takes.keys():
        raise DataError(f"the format {format} takes no {_flag(name)}: leave it out")
    for name, option in takes.items():
        if option.default is option.empty and name not in options:
            raise DataError(f"the format {format} needs {_flag(name)}: give it")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
