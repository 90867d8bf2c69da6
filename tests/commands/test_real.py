"""`msa real`: its commands in order, steps that are done already, and the report."""

import json
from types import SimpleNamespace

import pytest

from msa_train.cli import build_parser
from msa_train.commands import real
from msa_train.config import load_config
from msa_train.errors import ConfigError

ROWS = ("backbone", "fitted", "fitted + BM25", "BM25", "dense", "random router")


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Options of a run in tmp_path/out, and the commands that it is given (made by others)."""
    out, commands = tmp_path / "out", []
    line = [
        "real",
        "--backbone",
        "b/backbone",
        "--dense",
        str(tmp_path),
        "--means",
        "m",
        "--out",
        str(out),
    ]
    options = build_parser().parse_args(line)

    def main(arguments):
        commands.append(arguments)
        if arguments[:2] == ["router", "fit"]:
            (out / "fitted").mkdir(parents=True)
        elif arguments[:2] == ["data", "reading"]:
            (out / "questions").mkdir()
        elif arguments[0] == "export":
            (out / "reader").mkdir()
        elif arguments[0] in ("data", "train"):
            config = load_config([a for a in arguments[2 if arguments[0] == "data" else 1 :]
                                  if a not in ("--ranks", "2", "--resume")])  # fmt: skip
            assert config.data.datasets["questions"].path == str(out / "questions")
            assert config.training.start_from == str(out / "fitted")
        elif arguments[0] == "memory":
            (out / "bank").mkdir()
        elif arguments[0] == "ask":
            asked = [{"question": q, "answer": "so", "evidence": [2, 7]} for q in arguments[3:6]]
            print(json.dumps(asked))
        else:
            row = {f"recall@{k}": k / 20 for k in (1, 5, 16)}
            row |= {f"interval@{k}": [0.0, 1.0] for k in (1, 5, 16)}
            found = {"documents": 9, "questions": 4, "recall": dict.fromkeys(ROWS, row)}
            print(json.dumps({"corpora": {"pydocs": found}}))

    options.main = main
    bank = {2: SimpleNamespace(id="os.path.split"), 7: SimpleNamespace(id="len")}
    monkeypatch.setattr(
        "msa_train.memory.bank.snapshot.BankSnapshot.open", staticmethod(lambda path: bank)
    )
    return options, commands, out


def test_everything_is_run_in_order_and_reported(given, capsys):
    options, commands, out = given
    assert options.run(options) == 0
    assert [command[:2] for command in commands] == [
        ["router", "fit"], ["data", "reading"], ["data", "build"], ["train", "--config"],
        ["export", str(out / "reading")], ["memory", "build"], ["router", "compare"],
        ["ask", str(out / "reader")],
    ]  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert report.keys() >= {"seconds", "peak_rss_gb", "pydocs", "answers"}
    assert report["pydocs"].keys() >= {"zero_shot", "fitted", "bm25", "dense", "hybrid"}
    assert report["pydocs"]["fitted"] == [0.05, 0.25, 0.8]
    assert [each["question"] for each in report["answers"]] == list(real.QUESTIONS)
    assert report["answers"][0]["sources"] == ["os.path.split", "len"]
    assert set(report["steps"]) == {
        "fit", "questions", "reading", "memory", "retrieval", "answers",
    }  # fmt: skip
    assert (out / "real.png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    assert "== 6/6" in shown and "router, nothing trained" in shown and "read: os.path.sp" in shown


def test_what_is_done_is_not_done_again(given, capsys):
    options, commands, out = given
    options.run(options)
    first = json.loads((out / "report.json").read_text())
    (out / "answers.json").unlink()
    commands.clear()
    assert options.run(options) == 0
    assert [command[0] for command in commands] == ["ask"]
    again = json.loads((out / "report.json").read_text())
    assert again["steps"].keys() == first["steps"].keys()
    assert again["peak_rss_gb"] >= first["peak_rss_gb"] > 0
    assert capsys.readouterr().out.count("is there already") == 5


def test_a_failed_step_ends_it_and_is_not_done(given):
    options, _, out = given
    options.main = lambda arguments: 4
    with pytest.raises(SystemExit) as ended:
        options.run(options)
    kept = json.loads((out / "steps.json").read_text())
    assert ended.value.code == 4 and kept["made"] == {}
    assert kept["seconds"].keys() == {"fit"} and kept["peak_rss_gb"] > 0


def test_what_rests_on_a_step_that_was_done_again_is_refused(given, capsys):
    options, commands, out = given
    options.run(options)
    (out / "fitted").rmdir()
    commands.clear()
    with pytest.raises(ConfigError, match="questions was made from what is not there any more"):
        options.run(options)
    assert [command[:2] for command in commands] == [["router", "fit"]]
    with pytest.raises(ConfigError, match="questions was made"):  # nor the next time
        options.run(options)


def test_what_another_command_made_is_refused(given):
    options, commands, _ = given
    options.run(options)
    commands.clear()
    options.compute = "bfloat16"
    with pytest.raises(ConfigError, match="fitted was made by another command: remove it"):
        options.run(options)
    assert commands == []


def test_a_folder_of_a_version_that_did_not_note_how_is_refused(given):
    options, commands, out = given
    (out / "fitted").mkdir(parents=True)
    (out / "steps.json").write_text('{"seconds": {"fit": 3.0}, "peak_rss_gb": 1.0}')
    with pytest.raises(ConfigError, match=r"fitted is there, and .*steps\.json does not say how"):
        options.run(options)
    assert commands == []


def test_an_encoder_that_is_not_there_is_found_out_at_once(given):
    options, commands, out = given
    options.dense = out / "none"
    with pytest.raises(ConfigError, match="--dense is"):
        options.run(options)
    assert commands == []


def test_a_reading_config_that_is_not_there_is_named(given):
    options, commands, _ = given
    options.reading = options.out / "none.yaml"
    with pytest.raises(ConfigError, match=r"--reading is .*none\.yaml"):
        options.run(options)
    assert commands == []


def test_a_reading_config_without_its_one_dataset_is_refused(given, tmp_path):
    options, _, _ = given
    options.reading = tmp_path / "two.yaml"
    options.reading.write_text("data: {datasets: {}}")
    with pytest.raises(ConfigError, match=r"0 data\.datasets: give one"):
        options.run(options)
