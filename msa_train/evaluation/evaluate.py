"""The whole evaluation of a model: what every source holds out, report.json and its pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.sources.base import HeldOutBank, SourceInputs
from data_pipeline.tokenizer import Tokenizer
from msa_train.config import Config, to_plain
from msa_train.evaluation.asking import Asker
from msa_train.evaluation.jobs import usable_workers
from msa_train.evaluation.nested_banks import nested_sections
from msa_train.evaluation.plots import optional, plot_growth, plot_recall, plot_training
from msa_train.evaluation.report import machine, write_report
from msa_train.evaluation.whole_bank import whole_bank_section
from msa_train.model.decoder import MSADecoder

REPORT, METRICS = "report.json", "metrics.jsonl"


def evaluate(
    model: MSADecoder,
    tokenizer: Tokenizer,
    config: Config,
    out_dir: Path,
    show: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """Measures what the run's sources ask, writes out_dir/report.json and the pictures, returns the
    report.

    The run's training curves are drawn too, where its metrics.jsonl is in config.path; a picture
    that cannot be drawn is named on standard error. show: gets the report before anything is
    written, which may fail. A dataset that has nothing to ask stands under "not_asked".
    The caller may add its own keys (seconds, peak_rss_gb) and write the report again. Progress
    goes to standard error. Raises DataError where the settings leave too few questions.
    """
    began = time.monotonic()
    settings = config.evaluation
    workers = usable_workers(settings.workers, model.device)
    asker = Asker(model, tokenizer, settings.batch_contexts)
    report: dict[str, Any] = {}
    pictures: dict[str, HeldOutBank] = {}
    for name in config.data.sources:
        in_datasets = name in config.data.datasets
        if (held_out := _held_out(name, config, tokenizer)) is None:
            if in_datasets:
                report.setdefault("not_asked", []).append(name)
            continue
        if held_out.measure == "growth":
            report |= nested_sections(name, held_out, asker, settings, workers)
        else:
            part = report.setdefault("datasets", {}) if in_datasets else report
            part[name] = whole_bank_section(name, held_out, asker, settings, workers)
            part[name]["seen"] = held_out.seen
        if held_out.picture:
            pictures[name] = held_out
    report |= {
        "evaluation_seconds": round(time.monotonic() - began, 1),
        "gates": {str(layer): gate for layer, gate in model.gates()},
        "config": to_plain(settings),
        "model": to_plain(model.config),
        "machine": machine(),
    }
    show(report)
    write_report(report, out_dir / REPORT)
    _draw(report, pictures, config, out_dir)
    return report


def _draw(
    report: dict[str, Any], pictures: dict[str, HeldOutBank], config: Config, out_dir: Path
) -> None:
    """The pictures of sources, and of the run's training; one that fails is left out."""
    for name, held_out in pictures.items():
        path = out_dir / held_out.picture
        with optional(path):
            if held_out.measure == "growth":
                plot_growth(held_out.caption, report[name], path)
            else:
                plot_recall(config.data.source(name)[0].title, report[name], path)
    metrics, path = config.path / METRICS, out_dir / "training.png"
    if metrics.is_file():
        with optional(path):
            plot_training(metrics, path)


def _held_out(name: str, config: Config, tokenizer: Tokenizer) -> HeldOutBank | None:
    """What a source asks: of the registered ones those in use, of the datasets all."""
    data = config.data
    if name not in config.corpus.used_sources and name not in data.datasets:
        return None
    source, settings = data.source(name)
    inputs = SourceInputs(name, tokenizer, data.numbers, config.path / "prepared", seed=data.seed)
    return source.held_out_bank(settings, inputs, config.evaluation)
