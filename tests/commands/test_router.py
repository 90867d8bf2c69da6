"""`msa router`: reports in words and JSON, and exit codes."""

import json

import pytest

from msa_train.cli import main
from tests.memory.tiny import TEXTS, tiny_export


@pytest.fixture
def given(tmp_path):
    corpus = tmp_path / "c.jsonl"
    rows = [{"title": f"t{n}", "text": f"{text} and some more words, {n}."}
            for n, text in enumerate(TEXTS * 4)]  # fmt: skip
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny_export(tmp_path / "export"), corpus, tmp_path


def test_start_fit_and_probe(given, capsys):
    export, corpus, folder = given
    begun, fitted = str(folder / "begun"), str(folder / "fitted")
    assert main(["router", "start", str(export), str(corpus), "--out", begun, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reads"] == []
    steps = ["--steps", "4", "--look-every", "2"]
    assert main(["router", "fit", begun, str(corpus), "--out", fitted, *steps]) == 0
    said = capsys.readouterr().out
    assert "layers that read: none" in said and said.count("step ") == 3 and "<- kept" in said
    assert main(["router", "probe", str(export), str(corpus)]) == 0
    assert "best together: --layers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["start", "{export}", "{corpus}", "--layers", "7"], 2, "layers is '7'"),
        (["start", "{export}", "nothing.jsonl"], 3, "no such file"),
        (["start", "nothing", "{corpus}"], 4, "no complete export"),
        (["fit", "{export}", "{corpus}"], 2, "query_reduce 'max'"),
        (["probe", "{export}", "{corpus}", "--split", "train"], 3, "has no questions"),
        (["fit", "{export}", "{corpus}", "--steps", "0"], 2, "steps is 0"),
    ],
)
def test_wrong_input_has_its_own_code_and_leaves_nothing(given, capsys, arguments, code, said):
    export, corpus, folder = given
    filled = [each.format(export=export, corpus=corpus) for each in arguments]
    out = [] if arguments[0] == "probe" else ["--out", str(folder / "out")]
    assert main(["router", *filled, *out]) == code
    assert said in capsys.readouterr().err
    assert not (folder / "out").exists()
