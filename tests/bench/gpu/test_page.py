"""The page: everything planned is on it, unmeasured until a GPU has said otherwise."""

from dataclasses import replace

from msa_train.bench.gpu.page import page, table, write_page
from msa_train.bench.gpu.parts import PARTS
from msa_train.bench.gpu.results import PartResult, Results, Row
from msa_train.bench.gpu.sizes import FULL
from tests.house.sources import ROOT


def cells(text, what):
    [line] = [line for line in text.splitlines() if line.startswith(f"| {what} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def measured():
    rows = (
        Row("plain read", "GB/s", 3012.0, card="NVIDIA X", driver="1.2", torch="2", triton="3"),
        Row("fp8 keys, float32 query, 1 question token", "GB/s", failed="KernelError: no | fp8"),
        Row("something more", "ms", 1.5, 0.75, 0.5, "a note", (("mm|a", 0.5),)),
    )
    rows = tuple(replace(row, **vars_of(rows[0])) for row in rows)
    return Results(parts={"route": PartResult("RankError: not done", 61.0, rows)})


def vars_of(row):
    return {name: getattr(row, name) for name in ("card", "driver", "torch", "triton")}


def test_without_a_gpu_everything_is_unmeasured():
    text = page(Results())
    assert "No GPU has run it yet" in text
    planned = [what for part in PARTS.values() for what, _ in part.planned(FULL)]
    assert len(planned) > 90 and text.count("| unmeasured |") == len(planned)
    assert all(part.title in text for part in PARTS.values())


def test_what_was_measured_stands_beside_its_floor():
    text = page(measured())
    assert "Measured on NVIDIA X" in text and "driver 1.2, torch 2, Triton 3; 61 s" in text
    assert "It did not end: RankError: not done" in text
    assert cells(text, "plain read")[1:] == ["3,012 GB/s", "", "", ""]
    failed = cells(text, "fp8 keys, float32 query, 1 question token")
    assert failed[1:] == ["could not be measured", "", "", "KernelError: no / fp8"]
    assert "| something more | 1.5 ms | 0.75 ms | 0.5 | a note |" in text
    assert "| something more | ms |" in text  # and what it is made of
    assert cells(text, "mm/a") == ["mm/a", "0.5"]
    assert cells(text, "plain bfloat16 product of matrices")[1] == "unmeasured"


def test_toy_numbers_are_never_shown():
    assert page(replace(measured(), toy=True)) == page(Results())


def test_the_committed_page_is_what_the_committed_results_render_to(tmp_path):
    file = ROOT / "docs/results/bench-gpu.json"
    write_page(Results.read(file), tmp_path / "gpu.md")
    assert (tmp_path / "gpu.md").read_text() == (ROOT / "docs/results/gpu.md").read_text(), (
        "make it again: msa bench gpu --render --json docs/results/bench-gpu.json "
        "--page docs/results/gpu.md"
    )


def test_a_table_is_markdown():
    assert table(("a", "b"), [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
