"""report.json and its tables: averages, intervals, counts, and on what machine.

A measure is a column of one number per question ("layer2/..." for one router layer). A section of
the report holds every column's mean under its name (per layer under "layers"), and beside them
"intervals" (95 % bootstrap, low and high) and "n" (questions).
"""

from __future__ import annotations

import json
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from data_pipeline import files
from data_pipeline.sources.registry import SOURCES
from msa_train.evaluation.metrics import Bootstrap, Columns
from msa_train.router.settings import RECALL_AT

PACKAGES = ("msa-train", "torch", "numpy", "bm25s", "PyStemmer", "sentencepiece")
SHOWN = {  # column of the tables of nested banks -> measure
    "router\nrecall\n@16": "recall@16",
    "BM25\nrecall\n@16": "bm25_recall@16",
    "ids\nwritten\nF1": "ids_f1",
    "answers\nmemory\nalone": "answer_memory",
    "answers\nnamed\ntexts": "answer_text",
    "answers\nvoted\ntexts": "answer_voted_text",
}
LEGEND = """\
router        right documents among the first 1, 5, 16 that the router's layers vote for
BM25          the same for word search over the very same documents
ids written   the model names the documents it wants to read: F1 of those numbers
memory alone  right answers read from the pooled memory; the model sees no text
named texts   right answers after the texts of the documents it named
voted texts   the same after the texts of the four documents the router votes for most
              (right: exactly; of several values: F1)
Below each number: 95 % bootstrap interval. Loss: relative, over the same questions, paired."""
LEGEND_RETRIEVAL = """\
router    share of the right documents among the first 1, 5, 16 that the router's layers vote for
BM25      the same for word search over the very same documents
Below each number: 95 % bootstrap interval."""


def summarise(columns: Columns, resamples: int, seed: int) -> dict[str, Any]:
    """Means, intervals and counts of measures over questions; columns may differ in length."""
    means = {name: float(values.mean()) for name, values in columns.items()}
    counts = {name: len(values) for name, values in columns.items()}
    draws = {n: Bootstrap(n, resamples, seed) for n in set(counts.values())}
    intervals = {name: list(draws[len(x)].interval(x)) for name, x in columns.items()}
    return {
        **{name: mean for name, mean in means.items() if "/" not in name},
        "layers": _by_layer(means),
        "intervals": intervals,
        "n": counts,
    }


def mean_of(section: dict[str, Any], name: str) -> float:
    """The mean of a column, wherever it stands in its section."""
    layer, _, measure = name.rpartition("/")
    return section["layers"][layer.removeprefix("layer")][measure] if layer else section[name]


def relative_losses(first: Columns, last: Columns, resamples: int, seed: int) -> dict[str, Any]:
    """Per measure: loss from the shortest to the longest memory, paired over the same questions."""
    losses = {}
    for name in first.keys() & last.keys():
        if len(first[name]) != len(last[name]):
            continue
        draws = Bootstrap(len(first[name]), resamples, seed)
        if (loss := draws.relative_loss(first[name], last[name])) is not None:
            losses[name] = dict(zip(("value", "low", "high"), loss, strict=True))
    return dict(sorted(losses.items()))


def machine() -> dict[str, Any]:
    """CPU model, usable cores, memory and versions of what the numbers depend on."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(pages / 2**30, 1),
        "system": platform.platform(),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
    }


def write_report(report: dict[str, Any], path: Path) -> None:
    """Replaces the file at once: a reader never sees half a report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    files.replace_file(path, text + "\n")


def tables(report: dict[str, Any]) -> Group:
    """What rich prints: a table per task of nested banks and per whole bank, and a legend."""
    parts: list[Any] = []
    grows = False
    for name, source in SOURCES.items():
        if f"{name}_loss" in report:
            grows = True
            parts += _growth_parts(name, source.title, report)
        elif name in report:
            parts.append(_retrieval_table(source.title, report[name]))
    for name, section in report.get("datasets", {}).items():
        parts.append(_retrieval_table(name, section))
    for name in report.get("not_asked", []):
        parts.append(
            Text(f"{name}: nothing to ask; give data.datasets.{name}.held_out_split questions\n")
        )
    return Group(*parts, Text(LEGEND if grows else LEGEND_RETRIEVAL, style="dim"))


def _growth_parts(name: str, title: str, report: dict[str, Any]) -> list[Any]:
    parts: list[Any] = [
        _growth_table(f"{title}, {task.replace('_', '-')}", lengths, report[f"{name}_loss"][task])
        for task, lengths in report[name].items()
    ]
    if lines := _control_lines(report.get(f"{name}_controls", {})):
        parts.append(Text(lines, style="dim"))
    return parts


def _growth_table(title: str, lengths: dict[str, Any], losses: dict[str, Any]) -> Table:
    first = next(iter(lengths.values()))
    asked = f"{first['questions']:,} questions, the same at every length"
    table = _table(f"{title}: {asked}")
    table.add_column("memory\ntokens,\ndocuments", justify="right")
    shown = {title: _measure(name, first) for title, name in SHOWN.items() if name in first}
    for heading in shown:
        table.add_column(heading, justify="right")
    for length, section in lengths.items():
        cells = [_with_interval(section, name) for name in shown.values()]
        table.add_row(f"{int(length):,}\n[dim]{section['documents']:,.0f}[/dim]", *cells)
    if losses:
        table.add_section()
        cells = [_loss(losses.get(name)) for name in shown.values()]
        table.add_row("loss", *cells, style="bold")
    return table


def _measure(name: str, section: dict[str, Any]) -> str:
    """Answers of several values are hardly ever exact: their F1 says more."""
    several = "answer_memory_recall" in section and name.startswith("answer")
    return f"{name}_f1" if several else name


def _retrieval_table(name: str, section: dict[str, Any]) -> Table:
    kind = "questions THAT TRAINING ASKS TOO" if section.get("seen") else "held-out questions"
    title = (
        f"{name}: {section['questions']:,} {kind}, bank of all {section['documents']:,} documents"
    )
    table = _table(title)
    table.add_column("")
    for k in RECALL_AT:
        table.add_column(f"recall@{k}", justify="right")
    rows = {"router, voted": ""} | {
        f"router, layer {layer}": f"layer{layer}/" for layer in section["layers"]
    }
    if "random_recall@1" in section:
        rows["random router"] = "random_"
    for name, prefix in (rows | {"BM25": "bm25_"}).items():
        cells = [_with_interval(section, f"{prefix}recall@{k}") for k in RECALL_AT]
        table.add_row(name, *cells)
    return table


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )


def _control_lines(tasks: dict[str, Any]) -> str:
    lines = []
    for task, controls in tasks.items():
        said = ", ".join(
            f"{name.replace('_', ' ')} {section['answer_memory']:.3f}"
            for name, section in controls.items()
        )
        lines.append(f"Controls, {task}: answers right with {said}")
    return "\n".join(lines)


def _with_interval(section: dict[str, Any], name: str) -> str:
    if name not in section["intervals"]:
        return "-"
    low, high = section["intervals"][name]
    return f"{mean_of(section, name):.3f}\n[dim]{_short(low)}-{_short(high)}[/dim]"


def _short(share: float) -> str:
    """Three digits without the leading zero, so that a table fits a terminal of 80 columns."""
    return f"{share:.3f}".removeprefix("0") if share < 0.9995 else "1.0"


def _loss(loss: dict[str, float] | None) -> str:
    if loss is None:
        return "-"
    low, high = 100 * loss["low"], 100 * loss["high"]
    return f"{100 * loss['value']:.1f} %\n[dim]{low:.1f} to {high:.1f}[/dim]"


def _by_layer(means: dict[str, float]) -> dict[str, dict[str, float]]:
    layers: dict[str, dict[str, float]] = {}
    for name, mean in means.items():
        layer, _, measure = name.rpartition("/")
        if layer:
            layers.setdefault(layer.removeprefix("layer"), {})[measure] = mean
    return layers


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
