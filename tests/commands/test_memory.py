"""`msa memory ...` by hand: each action, its JSON, its errors."""

import io
import json

import pytest

from data_pipeline.dataset import Passage, write_dataset
from data_pipeline.sources.pydocs import Entry, PydocsSource
from msa_train.cli import main
from msa_train.interop.export import LoadedModel
from tests.memory.tiny import FINGERPRINT, tiny_model, tiny_tokenizer


@pytest.fixture
def memory(tmp_path, monkeypatch, capsys):
    """memory(action, ...) -> exit code, JSON of standard output, standard error."""
    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), FINGERPRINT)
    monkeypatch.setattr("msa_train.interop.export.load_export", lambda folder, *_: loaded)
    monkeypatch.chdir(tmp_path)

    def run(action, *arguments):
        code = main(["memory", action, *map(str, arguments), "--json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if captured.out else None, captured.err

    return run


def corpus(name, *documents):
    lines = [json.dumps({"id": id, "text": text}) for id, text in documents]
    with open(name, "w") as file:
        file.write("\n".join(lines))
    return name


@pytest.fixture
def bank(memory):
    first = corpus("a.jsonl", ("a", "Cranes sleep standing."), ("b", "Rain."), ("c", "x"))
    code, info, _ = memory("build", "bank", "export", first)
    assert code == 0 and info["documents"] == 3
    return "bank"


def test_a_bank_is_changed_and_read_back(memory, bank):
    more = corpus("b.jsonl", ("d", "The code of the harbour is 4711."))
    assert memory("add", bank, "export", more)[1]["documents"] == 4
    changed = corpus("c.jsonl", ("b", "Snow."))
    assert memory("update", bank, "export", changed)[1]["next_number"] == 5
    code, info, _ = memory("remove", bank, "--ids", "a", "--numbers", 2)
    assert (code, info["documents"], info["removed"]) == (0, 2, 3)
    assert memory("compact", bank)[1]["removed"] == 0
    found = [(line["number"], line["id"], line["text"]) for line in memory("texts", bank)[1]]
    assert found == [(3, "d", "The code of the harbour is 4711."), (4, "b", "Snow.")]
    assert memory("verify", bank)[1]["problems"] == []


def test_a_dataset_folder_is_read_with_its_titles(memory):
    write_dataset("set", [Passage("a", "Cranes", "They sleep."), Passage("b", "", "Rain.")], [])
    assert memory("build", "own", "export", "set")[1]["documents"] == 2
    found = [(line["id"], line["title"], line["text"]) for line in memory("texts", "own")[1]]
    assert found == [("a", "Cranes", "Cranes\nThey sleep."), ("b", "", "Rain.")]


def test_texts_can_be_built_again(memory, bank, tmp_path):
    assert memory("texts", bank, "--out", "all.jsonl")[0] == 0
    assert memory("build", "again", "export", "all.jsonl")[1]["documents"] == 3
    assert memory("texts", "again")[1] == memory("texts", bank)[1]


def test_an_update_never_takes_the_place_of_a_document_without_id(memory, tmp_path):
    lines = [{"id": "1", "text": "explicit one"}, {"text": "without id, number 1"}]
    (tmp_path / "collide.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert memory("build", "bank", "export", "collide.jsonl")[1]["documents"] == 2
    changed = corpus("changed.jsonl", ("1", "new one"))
    assert memory("update", "bank", "export", changed)[1]["documents"] == 2
    left = [(line["id"], line["text"]) for line in memory("texts", "bank")[1]]
    assert left == [("", "without id, number 1"), ("1", "new one")]


def test_standard_input_is_a_corpus(memory, bank, monkeypatch):
    lines = b'\n{"text": "From a pipe.", "added": 5, "metadata": {"k": [1]}}\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert memory("add", bank, "export", "-")[1]["documents"] == 4
    assert memory("texts", bank)[1][-1] == {
        "id": "", "title": "", "text": "From a pipe.", "number": 3, "added": 5,
        "metadata": {"k": [1]},
    }  # fmt: skip
    for line, said in ((b'{"text": "a"}\n[]', "line 2: give a JSON object"), (b"{", "line 1: not")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(line)))
        code, _, err = memory("add", bank, "export", "-")
        assert code == 3 and f"standard input, {said}" in err


def test_texts_of_split_documents_can_be_added_to_another_bank(memory, bank):
    long = corpus("long.jsonl", ("long", "Cranes sleep standing. " * 20))
    memory("build", "parts", "export", long, "--document-tokens", 100)
    memory("texts", "parts", "--out", "parts.jsonl")
    given = "add", bank, "export", "parts.jsonl", "--document-tokens"
    code, _, err = memory(*given, 60)
    assert code == 3 and "part 1 of document 'long' has more than 60 tokens" in err
    assert memory(*given, 100)[0] == 0
    parts = [line["part"] for line in memory("texts", bank)[1] if line["id"] == "long"]
    assert parts == list(range(1, len(parts) + 1)) and len(parts) > 1


def test_pydocs_are_a_corpus(memory, monkeypatch):
    entries = [Entry(f"e{n}", "m", "Cranes sleep. " * n, 9, ()) for n in range(1, 40, 6)]
    monkeypatch.setattr(
        PydocsSource, "__init__", lambda self, *_: setattr(self, "entries", entries)
    )
    assert memory("build", "docs", "export", "pydocs", "--document-tokens", 60)[0] == 0
    lines = memory("texts", "docs")[1]
    assert [line["id"] for line in lines][:2] == ["e1", "e7"] and len(lines) > 7


def test_long_documents_are_split_and_reported(memory):
    long = corpus("long.jsonl", ("long", "Cranes sleep standing. " * 20), ("short", "Rain."))
    code, info, err = memory("build", "bank", "export", long, "--document-tokens", 60)
    lines = memory("texts", "bank")[1]
    parts = [line["part"] for line in lines if line["id"] == "long"]
    assert code == 0 and parts == list(range(1, len(parts) + 1)) and len(parts) > 1
    assert f"1 documents of more than 60 tokens became {len(parts)}" in err
    words = " ".join(line["text"] for line in lines[:-1]).split()
    assert words == ["Cranes", "sleep", "standing."] * 20
    assert info["tokens"] <= 60 * len(lines)
    assert memory("remove", "bank", "--numbers", 1)[1]["documents"] == 1
    assert [line["id"] for line in memory("texts", "bank")[1]] == ["short"]


def test_damage_is_reported_with_an_exit_code(memory, bank, tmp_path):
    (file,) = (tmp_path / bank / "segments").rglob("layer-2.k")
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    code, report, _ = memory("verify", bank)
    assert code == 5 and "layer-2.k was changed" in report["problems"][0]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["remove", "bank"], 2, "--ids or --numbers"),
        (["remove", "bank", "--ids", "a", "nobody"], 5, "'nobody'"),
        (["add", "bank", "export", "a.jsonl"], 5, "'a' is in bank"),
        (["add", "nowhere", "export", "a.jsonl"], 5, "nowhere"),
        (["add", "bank", "export", "nothing.jsonl"], 3, "nothing.jsonl"),
        (["build", "bank", "export", "a.jsonl"], 5, "bank exists"),
        (["build", "new", "export", "dup.jsonl"], 5, "'a' comes twice"),
        (["build", "new", "export", "blank.jsonl"], 3, 'blank.jsonl, line 2: "text" is blank'),
        (["build", "new", "export", "empty.jsonl"], 3, "empty.jsonl has no documents"),
        (["add", "bank", "export", "empty.jsonl"], 3, "empty.jsonl has no documents"),
        (["add", "bank", "export", "blank.jsonl"], 3, 'blank.jsonl, line 2: "text" is blank'),
        (["build", "new", "export", "a.jsonl", "--document-tokens", "0"], 2, "document-tokens"),
        (["build", "new", "export", "a.jsonl", "--ranks", "0"], 2, "--ranks is 0"),
        (["build", "new", "export", "a.jsonl", "--rank-timeout", "nan"], 2, "--rank-timeout"),
        (["build", "new", "export", "nan.jsonl"], 3, 'nan.jsonl, line 1: "metadata" is no JSON'),
        (["build", "new", "export", "deep.jsonl"], 3, "deep.jsonl, line 1: not JSON"),
        (["remove", "bank", "--numbers", str(10**30)], 5, f"no document {10**30}"),
        (["remove", "bank", "--numbers", "-1"], 5, "no document -1"),
        (["texts", "bank", "--out", "a.jsonl"], 2, "--out a.jsonl: File exists"),
        (["texts", "bank", "--out", "no/where"], 2, "--out no/where: No such file"),
        (["info", "a.jsonl"], 5, "a.jsonl is no memory bank: it is a file"),
        (["build", "new", "export", "a.jsonl", "--rank-timeout", "0"], 2, "--rank-timeout"),
    ],
)
def test_what_is_wrong_is_named(memory, bank, tmp_path, arguments, code, said):
    (tmp_path / "nan.jsonl").write_text('{"text": "x", "metadata": [NaN]}')
    (tmp_path / "deep.jsonl").write_text('{"text": "x", "metadata": %s}' % ("[" * 10**5))
    corpus("dup.jsonl", ("a", "first"), ("a", "second"))
    corpus("blank.jsonl", ("x", "first"), ("y", "   "))
    (tmp_path / "empty.jsonl").touch()
    found, out, err = memory(*arguments)
    assert found == code and said in err and out is None
    assert memory("info", bank)[1]["documents"] == 3


def test_a_dtype_that_no_bank_has_is_a_wrong_argument(memory, bank, capsys):
    with pytest.raises(SystemExit) as ended:
        memory("build", "new", "export", "a.jsonl", "--dtype", "int8")
    assert ended.value.code == 2 and "float16" in capsys.readouterr().err
