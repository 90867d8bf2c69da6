"""`msa bench`: a subcommand for each benchmark, with its own options and no others."""

import json

import pytest

from data_pipeline.schema import Document
from msa_train.cli import main
from msa_train.commands.bench import _rows
from msa_train.interop.export import LoadedModel
from msa_train.memory.bank.build import build_bank
from tests.memory.tiny import FINGERPRINT, tiny_model, tiny_tokenizer

BENCHMARKS = (
    "kernels", "layouts", "train", "encode", "split", "candidates", "memory", "serve", "gpu",
)  # fmt: skip


def code_of(*arguments):
    """Exit code, whether it is returned or raised while arguments are read."""
    try:
        return main(["bench", *arguments])
    except SystemExit as ended:
        return ended.code


def test_every_benchmark_is_listed_with_a_line(capsys):
    assert code_of("--help") == 0
    shown = capsys.readouterr().out
    for name in BENCHMARKS:
        assert name in shown
    for name in BENCHMARKS:
        assert code_of(name, "--help") == 0
        assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "'nothing'"),
        (["memory", "--parts", "scale", "tea"], "'tea': give some of scale"),
        (["kernels", "--parts", "scale"], "--parts"),
        (["kernels", "rooting"], "'rooting' is unknown"),
        (["train", "--quick"], "--quick"),
        (["layouts", "--export", "folder"], "--export"),
        (["serve", "--quick"], "--quick"),
        (["memory", "--url", "http://localhost"], "--url"),
        (["serve"], "--url, or --export and --bank"),
        (["candidates", "--export", "e", "--bank", "b"], "--questions"),
        (["serve", "--retrieval", "tea"], "'tea'"),
        (["gpu", "--parts", "route", "tea"], "'tea': give some of accuracy, route"),
        (["gpu", "--render"], "--render without --page"),
    ],
)
def test_what_does_not_apply_is_refused(arguments, said, capsys):
    assert code_of(*arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.out == ""


def test_options_reach_their_benchmark(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(
        "msa_train.bench.serve.measure", lambda *options: given.append(options) or {"answers": 3}
    )
    assert code_of("serve", "--url", "http://h:1", "--clients", "2", "--seconds", "0.5") == 0
    assert capsys.readouterr().out == "answers 3\n"
    assert code_of("serve", "--url", "http://h:1", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"answers": 3}
    assert given == [
        (None, None, "http://h:1", 2, 0.5, "generate", 0),
        (None, None, "http://h:1", 32, 60.0, "generate", 0),
    ]
    monkeypatch.setattr(
        "msa_train.bench.kernels.suites.measure", lambda *options: [{"got": options}]
    )
    assert code_of("kernels", "states", "--repeats", "2") == 0
    assert capsys.readouterr().out == "got (['states'], 2)\n"


def test_rows_are_lines_and_begin_with_their_part():
    assert list(_rows([{"a": 1}])) == [{"a": 1}]
    found = {"scale": [{"a": 1}, {"a": 2}], "linearity": {"ratio": 3}, "model": "random"}
    assert list(_rows(found)) == [
        {"part": "scale", "a": 1}, {"part": "scale", "a": 2}, {"part": "linearity", "ratio": 3},
        {"model": "random"},
    ]  # fmt: skip


def test_candidates_are_counted_for_a_bank_and_its_questions(tmp_path, monkeypatch, capsys):
    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), FINGERPRINT)
    monkeypatch.setattr("msa_train.interop.export.load_export", lambda folder, placed: loaded)
    documents = [Document(n, f"Text {n}.", id=str(n)) for n in range(20)]
    build_bank(tmp_path / "bank", loaded.model, loaded.tokenizer, documents, FINGERPRINT)
    questions = tmp_path / "questions.dev.jsonl"
    questions.write_text(
        json.dumps({"question": "Which?", "answers": ["a"], "documents": ["1"]}) + "\n"
    )
    options = ["--export", "e", "--bank", str(tmp_path / "bank"), "--questions", str(questions)]
    assert code_of("candidates", *options, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["form"] for row in rows} == {"int8", "fp8"}
    assert all(row["questions"] == 1 and row["documents"] == 20 for row in rows)


def test_a_gpu_that_is_not_there_is_one_line_with_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert code_of("gpu", "--json", str(tmp_path / "gpu.json")) == 12
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "--toy" in captured.err


def test_files_of_the_battery_are_looked_at_before_a_gpu_is(tmp_path, capsys):
    """Not after its 25 minutes."""
    out, page = tmp_path / "gpu.json", tmp_path / "gpu.md"
    given = "gpu", "--render", "--json", str(out), "--page", str(page)
    assert code_of(*given) == 3 and not page.exists()
    assert f"{out} is missing" in capsys.readouterr().err
    assert code_of("gpu", "--json", str(out), "--page", str(out)) == 2
    assert "--page" in capsys.readouterr().err
    page.mkdir()
    assert code_of("gpu", "--toy", "--json", str(out), "--page", str(page)) == 11
    assert f"{page}: " in capsys.readouterr().err and not out.exists()


def test_parts_of_the_battery_run_at_toy_size_and_are_not_shown(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out, page = tmp_path / "gpu.json", tmp_path / "gpu.md"
    given = "--toy", "--json", str(out), "--page", str(page)
    assert code_of("gpu", *given, "--parts", "encode", "route") == 0
    assert "encode: 4B geometry, 240 tokens at once" in capfd.readouterr().out
    found = json.loads(out.read_text())
    assert found["toy"] and [*found["parts"]] == ["route", "encode"]
    rows = [row for part in found["parts"].values() for row in part["rows"]]
    assert all(row["toy"] and row["card"] and row["value"] for row in rows)
    assert "No GPU has run it yet" in page.read_text()
