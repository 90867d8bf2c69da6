"""The whole evaluation of a model: needles, real text, report.json and its pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from data_pipeline.tokenizer import Tokenizer
from msa_train.config import Config, to_plain
from msa_train.evaluation import niah, qa
from msa_train.evaluation.asking import Asker
from msa_train.evaluation.memories import EncodedSet
from msa_train.evaluation.plots import plot_memory, plot_pydocs, plot_training
from msa_train.evaluation.progress import Progress
from msa_train.evaluation.report import machine, write_report
from msa_train.model.decoder import MSADecoder

REPORT, METRICS = "report.json", "metrics.jsonl"
PICTURES = {"memory.png": plot_memory, "pydocs.png": plot_pydocs}


def evaluate(
    model: MSADecoder, tokenizer: Tokenizer, config: Config, out_dir: Path
) -> dict[str, Any]:
    """Measures everything, writes out_dir/report.json and the pictures, returns the report.

    The run's training curves are drawn too, where its metrics.jsonl is in config.path.
    The caller may add its own keys (seconds, peak_rss_gb) and write the report again. Progress
    goes to standard error. Raises DataError where the settings leave too few questions.
    """
    began = time.monotonic()
    settings = config.evaluation
    needles = niah.needle_bank(settings, config.data, tokenizer)
    needle_memory = EncodedSet.encode(model, tokenizer, needles.documents)
    tasks = niah.needle_tasks(needles, needle_memory, settings)
    pydocs = qa.pydocs_bank(settings, config.data, tokenizer)
    pydocs_memory = EncodedSet.encode(model, tokenizer, pydocs.documents)
    total = niah.asked_in_all(tasks, settings) + qa.asked_in_all(pydocs.queries, settings)
    with Progress(total) as progress:
        asker = Asker(model, tokenizer, settings.batch_contexts, progress)
        report = niah.evaluate_needles(tasks, needle_memory, asker, settings)
        report["pydocs"] = qa.evaluate_pydocs(pydocs.queries, pydocs_memory, asker, settings)
    report |= {
        "evaluation_seconds": round(time.monotonic() - began, 1),
        "gates": {str(layer): gate for layer, gate in model.gates()},
        "config": to_plain(settings),
        "model": to_plain(model.config),
        "machine": machine(),
    }
    write_report(report, out_dir / REPORT)
    for name, draw in PICTURES.items():
        draw(report, out_dir / name)
    if (metrics := config.path / METRICS).is_file():
        plot_training(metrics, out_dir / "training.png")
    return report
