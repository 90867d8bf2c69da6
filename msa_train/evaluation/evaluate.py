"""The whole evaluation of a model: needles, real text, report.json and its pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_training import used_sources
from msa_train.config import Config, to_plain
from msa_train.evaluation import niah, qa
from msa_train.evaluation.asking import Asker
from msa_train.evaluation.datasets import dataset_reports
from msa_train.evaluation.jobs import usable_workers
from msa_train.evaluation.plots import plot_memory, plot_pydocs, plot_training
from msa_train.evaluation.report import machine, write_report
from msa_train.model.decoder import MSADecoder

REPORT, METRICS = "report.json", "metrics.jsonl"
PICTURES = {"memory.png": ("niah", plot_memory), "pydocs.png": ("pydocs", plot_pydocs)}


def evaluate(
    model: MSADecoder, tokenizer: Tokenizer, config: Config, out_dir: Path
) -> dict[str, Any]:
    """Measures what the run's sources ask, writes out_dir/report.json and the pictures, returns the
    report.

    The run's training curves are drawn too, where its metrics.jsonl is in config.path.
    The caller may add its own keys (seconds, peak_rss_gb) and write the report again. Progress
    goes to standard error. Raises DataError where the settings leave too few questions.
    """
    began = time.monotonic()
    settings, used = config.evaluation, used_sources(config.corpus)
    workers = usable_workers(settings.workers, model.model.embed_tokens.weight.device)
    asker = Asker(model, tokenizer, settings.batch_contexts)
    report: dict[str, Any] = {}
    if "niah" in used:
        report |= niah.needle_section(asker, config, workers)
    if "pydocs" in used:
        report["pydocs"] = qa.pydocs_section(asker, config, workers)
    if datasets := dataset_reports(model, tokenizer, config, config.path / "prepared", workers):
        report["datasets"] = datasets
    report |= {
        "evaluation_seconds": round(time.monotonic() - began, 1),
        "gates": {str(layer): gate for layer, gate in model.gates()},
        "config": to_plain(settings),
        "model": to_plain(model.config),
        "machine": machine(),
    }
    write_report(report, out_dir / REPORT)
    for name, (part, draw) in PICTURES.items():
        if part in report:
            draw(report, out_dir / name)
    if (metrics := config.path / METRICS).is_file():
        plot_training(metrics, out_dir / "training.png")
    return report
