"""The whole evaluation of a model: needles, real text, report.json and its pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from data_pipeline.tokenizer import Tokenizer
from msa_train.config import Config, to_plain
from msa_train.evaluation import niah, qa
from msa_train.evaluation.asking import Asker
from msa_train.evaluation.jobs import run_jobs, usable_workers
from msa_train.evaluation.memories import EncodedSet
from msa_train.evaluation.plots import plot_memory, plot_pydocs, plot_training
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
    asker = Asker(model, tokenizer, settings.batch_contexts)
    jobs = niah.needle_jobs(tasks, needle_memory, asker, settings)
    pydocs_jobs = qa.pydocs_jobs(pydocs.queries, pydocs_memory, asker, settings)
    workers = usable_workers(settings.workers, model.model.embed_tokens.weight.device)
    results = run_jobs(jobs | pydocs_jobs, workers)
    report = niah.needle_report(tasks, needle_memory, {key: results[key] for key in jobs}, settings)
    report["pydocs"] = qa.pydocs_report(
        pydocs.queries, pydocs_memory, {key: results[key] for key in pydocs_jobs}, settings
    )
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
