"""Pictures of a report and of a training run, as PNGs that read at the width of a README."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline import files
from data_pipeline.errors import DataError
from msa_train.evaluation.report import mean_of
from msa_train.router.settings import RECALL_AT

CURVES = (  # measure, label, colour, marker, line style
    ("recall@16", "router finds (recall@16)", "#1f5fa8", "o", "-"),
    ("bm25_recall@16", "BM25 finds (recall@16)", "#8a8a8a", "s", "--"),
    ("answer_memory", "answers, pooled memory alone", "#c2410c", "D", "-"),
    ("answer_text", "answers, texts it named", "#2f855a", "^", "-"),
    ("ids_f1", "document ids written (F1)", "#b7950b", "P", ":"),
    ("answer_voted_text", "answers, texts the router voted for", "#7c3aed", "v", "-"),
)
# label -> shares at RECALL_AT, their bounds, colour
Groups = Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]], str]]
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 150,
}
PANELS = {  # title -> which keys of metrics.jsonl it shows
    "losses": r"^loss/",
    "router recall@1 on training banks": r"^router/layer_\d+_recall@1$",
    "router recall@1, held-out banks": r"^held_out/.*recall@1$",
    "gate sharpness": r"gate",
}


def plot_growth(caption: str, tasks: dict[str, Any], path: Path) -> None:
    """What is found and answered, against memory tokens; tasks: a section each, with a panel."""
    size = max(5.6, 4.6 * len(tasks)), 4.6
    with _drawn(path, size, len(tasks), sharey=True) as (figure, axes):
        for axis, (task, sections) in zip(axes, tasks.items(), strict=True):
            _memory_panel(axis, task, sections)
        axes[0].set_ylabel("share found, or answered right")
        axes[0].set_ylim(_bottom(tasks), 1.025)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.suptitle(f"{caption} (bands: 95 %)", fontsize=12)
        figure.legend(handles, labels, loc="outside lower center", ncols=2)


def plot_recall(title: str, section: dict[str, Any], path: Path) -> None:
    """Recall of held-out questions over a whole bank: router, its layers, BM25."""
    layers = list(section["layers"])
    prefixes = {"router, all layers voting": ("", "#1f5fa8")}
    for shade, layer in zip(("#7aa6d6", "#a9c6e6", "#cfdff1"), layers[:3], strict=False):
        prefixes[f"router, layer {layer} alone"] = (f"layer{layer}/", shade)
    prefixes["BM25"] = ("bm25_", "#8a8a8a")
    groups = {}
    for label, (prefix, colour) in prefixes.items():
        names = [f"{prefix}recall@{k}" for k in RECALL_AT]
        values = [mean_of(section, name) for name in names]
        groups[label] = values, [section["intervals"][name] for name in names], colour
    with _drawn(path, (7.4, 4.4)) as (figure, (axis,)):
        _recall_panel(axis, groups)
        axis.set_title(
            f"{title}: {section['questions']:,} held-out questions, "
            f"bank of {section['documents']:,} documents",
            fontsize=11,
        )
        figure.legend(loc="outside lower center", ncols=2)


def plot_methods(
    title: str, methods: Groups, answers: Sequence[tuple[str, str, str]], path: Path
) -> None:
    """Recall of several ways to search, and beside it questions, answers and what was read."""
    with _drawn(path, (12.4, 4.8), 2, width_ratios=(1.35, 1)) as (figure, (axis, told)):
        _recall_panel(axis, methods)
        axis.set_title(title, fontsize=11)
        figure.legend(loc="outside lower left", ncols=3)
        told.set_axis_off()
        place = 1.0
        for question, answer, read in answers:
            for text, style in (
                (question, {"weight": "bold"}),
                (answer, {"color": "#1f5fa8", "fontsize": 12}),
                (f"read: {read}", {"color": "#666666", "fontsize": 9}),
            ):
                lines = textwrap.wrap(text, 52 if "weight" in style else 60, max_lines=5)
                told.text(
                    0, place, "\n".join(lines), va="top", transform=told.transAxes,
                    parse_math=False, **style,
                )  # fmt: skip
                place -= 0.052 * len(lines) + 0.02
            place -= 0.05


def plot_training(metrics: Path, path: Path) -> None:
    """Losses, router recall and gates of a run's metrics.jsonl. Raises DataError if it has none."""
    series = _series(metrics)
    panels = {
        title: chosen
        for title, pattern in PANELS.items()
        if (chosen := {key: line for key, line in series.items() if re.search(pattern, key)})
    }
    if not panels:
        raise DataError(f"{metrics}: no step with a loss, recall or gate; nothing to draw")
    with _drawn(path, (4.2 * len(panels), 3.9), len(panels)) as (_, axes):
        for axis, (title, lines) in zip(axes, panels.items(), strict=True):
            for key, (steps, values) in lines.items():
                axis.plot(steps, values, label=spoken_name(key), linewidth=1.6)
            axis.set_title(title, fontsize=11)
            axis.set_xlabel("step")
            axis.set_ylim(bottom=0)
            axis.legend(fontsize=9)


def _memory_panel(axis, task: str, sections: dict[str, Any]) -> None:
    lengths = [int(length) for length in sections]
    several = "answer_memory_recall" in next(iter(sections.values()))
    for name, label, colour, marker, line in CURVES:
        measure = f"{name}_f1" if several and name.startswith("answer") else name
        drawn = [s for s in sections.values() if measure in s]
        if len(drawn) < len(lengths):
            continue
        low, high = zip(*(s["intervals"][measure] for s in drawn), strict=True)
        axis.fill_between(lengths, low, high, color=colour, alpha=0.15, linewidth=0)
        values = [s[measure] for s in drawn]
        axis.plot(
            lengths, values, line, color=colour, marker=marker, markersize=6, linewidth=2,
            markeredgecolor="white", markeredgewidth=0.8, label=label,
        )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [_short(length) for length in lengths])
    axis.minorticks_off()
    axis.set_xlabel("memory tokens")
    questions = next(iter(sections.values()))["questions"]
    title = task.replace("_", "-").capitalize()
    counted = "F1 of the values" if several else "exactly right"
    axis.set_title(f"{title}: {questions:,} questions, answers {counted}", fontsize=11)


def _recall_panel(axis, groups: Groups) -> None:
    """Bars side by side at each recall@k."""
    width = 0.8 / len(groups)
    for place, (label, (values, bounds, colour)) in enumerate(groups.items()):
        x = [k + (place - (len(groups) - 1) / 2) * width for k in range(len(RECALL_AT))]
        _bars(axis, x, width * 0.92, values, bounds, label, colour)
    axis.set_xticks(range(len(RECALL_AT)), [f"recall@{k}" for k in RECALL_AT])
    axis.set_ylim(0, 1.12)
    axis.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axis.grid(axis="x", visible=False)
    axis.set_ylabel("share of questions")


def _bars(axis, x, width: float, values, bounds, label: str, colour: str) -> None:
    below = [value - low for value, (low, _) in zip(values, bounds, strict=True)]
    above = [high - value for value, (_, high) in zip(values, bounds, strict=True)]
    axis.bar(x, values, width, color=colour, label=label)
    axis.errorbar(x, values, (below, above), fmt="none", ecolor="#333333", elinewidth=1, capsize=2)
    size = 9 if width > 0.13 else 7.5
    for place, value, up in zip(x, values, above, strict=True):
        axis.text(
            place, value + up + 0.012, f"{value:.2f}", ha="center", va="bottom", fontsize=size
        )


def _series(metrics: Path) -> dict[str, tuple[list[int], list[float]]]:
    """What a run wrote, without a last line that was cut off while it was written."""
    series: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    lines = metrics.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("no object")
        except ValueError as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise DataError(f"{metrics}, line {number}: not a row of metrics ({error})") from None
        for key, value in row.items():
            if "step" in row and key != "step" and isinstance(value, (int, float)):
                series[key][0].append(row["step"])
                series[key][1].append(value)
    return dict(series)


def _bottom(tasks: dict[str, Any]) -> float:
    """Zero, or one half where every curve lies above it, so that differences can be seen."""
    shown = {measure for measure, *_ in CURVES}
    lows = [
        low
        for sections in tasks.values()
        for section in sections.values()
        for name, (low, _) in section["intervals"].items()
        if name in shown
    ]
    return 0.5 if min(lows, default=0) > 0.55 else 0.0


def _short(tokens: int) -> str:
    if tokens % 2**20 == 0:
        return f"{tokens // 2**20}M"
    return f"{tokens // 2**10}K" if tokens % 2**10 == 0 else f"{tokens:,}"


def spoken_name(key: str) -> str:
    """router/layer_2_recall@1 -> layer 2; held_out/nq/recall@1 -> nq; loss/lm -> lm."""
    if key.startswith("held_out/"):
        return key.split("/")[1]
    layer = re.search(r"layer_?(\d+)", key)
    return f"layer {layer[1]}" if layer else key.rpartition("/")[2].replace("_", " ")


@contextmanager
def optional(path: Path) -> Iterator[None]:
    """For a block that draws `path`: a picture that fails is said, and ends nothing else."""
    try:
        yield
    except Exception as error:  # whatever it is, what the picture shows has been measured
        print(f"no picture {path}: {error or type(error).__name__}", file=sys.stderr, flush=True)


@contextmanager
def _drawn(
    path: Path, size: tuple[float, float], panels: int = 1, **shared: Any
) -> Iterator[tuple[Any, Any]]:
    """A figure of `size` inches and its panels side by side; a PNG when the block ends."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            1, panels, figsize=size, squeeze=False, layout="constrained", **shared
        )
        yield figure, axes[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.whole(path) as partial:
            figure.savefig(partial, format="png")
        pyplot.close(figure)
