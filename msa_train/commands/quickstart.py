"""`msa quickstart`: the whole path on one small model, from raw text to answers and a report."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from msa_train.commands.output import add_config, config_arguments
from msa_train.commands.steps import MemoryWatch, begin_step, run_msa


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "quickstart", help="data, training, export, memory, questions and report in one go"
    )
    add_config(parser)
    parser.set_defaults(run=_quickstart)


def _quickstart(options: argparse.Namespace) -> int:
    from msa_train.config import load_config
    from msa_train.errors import ConfigError
    from msa_train.parallel.slots import ranks_here

    arguments = config_arguments(options)
    config = load_config(arguments)
    if (config.path / "report.json").exists():
        raise ConfigError(
            f"{config.path} holds a finished run: remove it, or give another --output"
        )
    msa = partial(run_msa, options.main)
    watch = MemoryWatch()
    began = time.monotonic()
    begin_step("1/5", "data: train the tokenizer, build WebDataset shards")
    msa(["data", "build", *arguments])
    ranks = ranks_here(2)
    begin_step("2/5", f"training: DeepSpeed over Megatron groups, {ranks} ranks")
    msa(["train", *arguments, "--ranks", str(ranks), "--resume"])
    begin_step("3/5", "export: safetensors under the published names")
    msa(["export", str(config.path), str(config.path / "export")])
    begin_step("4/5", "memory: encode this Python's documentation, and a bank of needles; ask")
    _ask_three(msa, config)
    begin_step("5/5", "evaluation: the same questions while the memory grows, beside BM25")
    msa(["eval", str(config.path / "export"), *arguments])
    _finish_report(config.path / "report.json", time.monotonic() - began, watch.stop())
    return 0


def _ask_three(msa: Callable[[list[str]], None], config: Any) -> None:
    """Build two banks and ask a single needle, a multi-value needle, and Python's documentation."""
    export, needles = config.path / "export", config.path / "needles.jsonl"
    questions = _write_needles(config, needles)
    for corpus, name in ((str(needles), "needles"), ("pydocs", "pydocs")):
        msa(["memory", "build", str(config.path / "banks" / name), str(export), corpus])
    bank = str(config.path / "banks" / "needles")
    msa(["ask", str(export), bank, questions["single"], "--retrieval", "memory"])
    msa(["ask", str(export), bank, questions["multi_value"]])
    msa(["ask", str(export), str(config.path / "banks" / "pydocs"), questions["pydocs"]])


def _write_needles(config: Any, path: Path) -> dict[str, str]:
    """A corpus of 1,000 needle documents as JSON lines; one question of each kind about it."""
    import numpy as np

    from data_pipeline import files
    from data_pipeline.sources.niah import NiahSource
    from data_pipeline.sources.pydocs import PydocsSource
    from msa_train.interop.export import load_export

    tokenizer = load_export(config.path / "export").tokenizer
    rng = np.random.default_rng(config.evaluation.seed)
    bank = NiahSource(config.data.niah, tokenizer, config.data.numbers).bank(rng, 1000)
    lines = (json.dumps({"text": document.text}) + "\n" for document in bank.documents)
    files.replace_file(path, "".join(lines))
    questions = {}
    for query in bank.queries:
        questions.setdefault("multi_value" if query.values else "single", query.question)
    held_out = PydocsSource(config.data.pydocs, tokenizer).whole_bank(rng).queries
    questions["pydocs"] = held_out[0].question
    return questions


def _finish_report(path: Path, seconds: float, peak_rss_gb: float) -> None:
    from msa_train.evaluation.report import write_report

    report = json.loads(path.read_text())
    report |= {"seconds": round(seconds, 1), "peak_rss_gb": round(peak_rss_gb, 2)}
    write_report(report, path)
    print(
        f"\nquickstart: {seconds / 60:.1f} minutes, at most {peak_rss_gb:.1f} GB of memory. "
        f"Report and pictures are in {path.parent}"
    )
