import json
import re

import numpy as np
import pytest

from data_pipeline.errors import DataError
from msa_train.evaluation.plots import (
    PANELS,
    optional,
    plot_growth,
    plot_methods,
    plot_recall,
    plot_training,
    spoken_name,
)


def test_plots_are_pictures(report, tmp_path):
    path = tmp_path / "plots" / "a.png"
    plot_growth("Needles", report["niah"], path)
    assert_drawn(path)
    plot_recall("Documentation", report["pydocs"], path)
    assert_drawn(path)


def test_methods_stand_beside_answers_of_any_text(tmp_path):
    methods = {
        "one": ((0.5, 0.7, 0.9), ((0.4, 0.6), (0.6, 0.8), (0.8, 1.0)), "#1f5fa8"),
        "other": ((0.0, 0.1, 0.1), ((0.0, 0.0), (0.0, 0.2), (0.0, 0.2)), "#8a8a8a"),
    }
    answers = [("What does $x^ cost?", "word " * 90, "a.b, c_d"), ("And?", "", "")]
    plot_methods("Documentation", methods, answers, tmp_path / "real.png")
    assert_drawn(tmp_path / "real.png")


def test_training_curves(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    rows = [
        {"step": s, "loss/lm": 4 / s, "router/layer_2_recall@1": 1 - 1 / s} for s in range(1, 20)
    ]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_training(metrics, tmp_path / "training.png")
    assert_drawn(tmp_path / "training.png")


def test_curves_carry_the_names_of_what_they_show():
    keys = {"router/layer_2_recall@1": "layer 2", "held_out/nq/recall@1": "nq", "loss/lm": "lm"}
    assert {key: spoken_name(key) for key in keys} == keys
    panels = {key: [t for t, pattern in PANELS.items() if re.search(pattern, key)] for key in keys}
    assert all(len(titles) == 1 for titles in panels.values()), "each in a panel of its own kind"


def test_a_run_without_metrics_is_refused(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    for text in ("", '{"step": 1, "lr": 0.1}\n', '{"step": 1, "lm_lo'):
        metrics.write_text(text)
        with pytest.raises(DataError, match="nothing to draw"):
            plot_training(metrics, tmp_path / "training.png")
    metrics.write_text('{"step": 1, "loss/lm": 2.0}\n5\n{"step": 2, "loss/lm": 1.0}\n')
    with pytest.raises(DataError, match="line 2: not a row of metrics"):
        plot_training(metrics, tmp_path / "training.png")


def test_what_stands_before_a_line_that_was_cut_is_drawn(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_bytes(b'{"step": 1, "loss/lm": 2.0, "gate": 1.0}\n{"step": 2, "loss/\xc3')
    plot_training(metrics, tmp_path / "training.png")
    assert_drawn(tmp_path / "training.png")


def test_a_picture_that_fails_ends_nothing_else(tmp_path, capsys):
    with optional(tmp_path / "a.png"):
        raise OSError("disk full")
    assert capsys.readouterr().err == f"no picture {tmp_path / 'a.png'}: disk full\n"


def assert_drawn(path):
    from matplotlib.image import imread

    picture = imread(path)[..., :3]
    assert picture.shape[1] > 800
    picture = picture[::5, ::5]
    colours = np.unique((picture.reshape(-1, 3) * 255).astype(np.uint8), axis=0)
    assert len(colours) > 30, "an empty canvas has a handful"
    assert (picture < 0.5).any(2).mean() > 0.01
