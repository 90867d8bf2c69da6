"""`msa data convert` and `msa data formats`."""

import json

from data_pipeline.converters import CONVERTERS
from msa_train.cli import main
from tests.data_pipeline.converters.files import questions, write, write_json
from tests.data_pipeline.converters.test_squad import SQUAD


def test_convert_command(tmp_path, capsys):
    path, out = write_json(tmp_path / "a.json", SQUAD), tmp_path / "new" / "out"
    assert main(["data", "convert", "squad", str(path), "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{out}: 3 passages (0 repetitions of one not written)",
        "  train: 1 questions",
        "  left out: 1 unanswerable questions",
    ]
    arguments = ["squad", str(path), str(path), "--split", "a,b", "--json"]
    assert main(["data", "convert", *arguments, "--out", f"{out}2"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "folder": f"{out}2",
        "passages": 3,
        "questions": {"a": 1, "b": 1},
        "repeated_passages": 3,
        "left_out": {"unanswerable questions": 2},
    }
    assert questions(f"{out}2", "b") == questions(out)


def test_options_reach_the_format(tmp_path, capsys):
    triples = write(tmp_path / "a.tsv", "7\t0\t1\n")
    collection = write(tmp_path / "collection.tsv", "0\tcats\n1\tdogs\n")
    queries = write(tmp_path / "queries.tsv", "7\twho\n")
    command = ["data", "convert", "msmarco", str(triples), "--out", str(tmp_path / "out")]
    files = ["--collection", str(collection), "--queries", str(queries)]
    assert main([*command, *files]) == 0
    assert main([*command, *files, "--stories"]) == 3
    assert "msmarco takes no --stories" in capsys.readouterr().err


def test_a_failed_command_leaves_nothing_and_says_where(tmp_path, capsys):
    good = write_json(tmp_path / "a.json", SQUAD)
    bad = write(tmp_path / "b.json", '{"data": [\n{"title": "x", "paragraphs": 3}]}')
    command = ["data", "convert", "squad", str(good), str(bad), "--out", str(tmp_path / "out")]
    assert main(command) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f'msa: {bad}, data[0]: "paragraphs" is 3: give a list\n'
    assert sorted(tmp_path.iterdir()) == [good, bad]


def test_formats_command(capsys):
    assert main(["data", "formats"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(CONVERTERS)
    assert main(["data", "formats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == CONVERTERS.keys()
