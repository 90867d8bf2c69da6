import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from msa_train.evaluation.report import relative_losses, summarise, tables, write_report


def test_a_section_holds_means_intervals_and_counts():
    section = summarise(
        {"recall@1": np.array([1.0, 0, 1, 1]), "layer2/recall@1": np.ones(3)}, 99, 0
    )
    assert section["recall@1"] == 0.75
    assert section["layers"] == {"2": {"recall@1": 1.0}}
    low, high = section["intervals"]["recall@1"]
    assert 0 <= low < 0.75 < high <= 1
    assert section["n"] == {"recall@1": 4, "layer2/recall@1": 3}


def test_losses_compare_only_the_same_questions():
    first = {"a": np.ones(10), "b": np.ones(10), "never": np.zeros(10)}
    last = {"a": np.r_[np.zeros(1), np.ones(9)], "b": np.ones(4), "never": np.zeros(10)}
    losses = relative_losses(first, last, 100, 0)
    assert list(losses) == ["a"]
    assert losses["a"]["value"] == pytest.approx(0.1)


def test_the_file_is_json_and_replaced_whole(report, tmp_path):
    path = tmp_path / "run" / "report.json"
    write_report({"old": 1}, path)
    with pytest.raises(ValueError):
        write_report(report | {"seconds": math.nan}, path)
    assert json.loads(path.read_text()) == {"old": 1}
    write_report(report, path)
    assert json.loads(path.read_text())["niah"]["single"]["16384"]["recall@16"] > 0.9
    assert report["machine"]["cores"] >= 1 and report["machine"]["versions"]["torch"]


def test_tables_show_every_length_and_the_loss(report):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(tables(report))
    text = console.export_text()
    section = report["niah"]["single"]["1048576"]
    for shown in ("16,384", "1,048,576", "loss", "router, layer 3", "no memory 0.004"):
        assert shown in text
    assert f"{section['answer_memory']:.3f}" in text
    assert max(map(len, text.splitlines())) <= 100
