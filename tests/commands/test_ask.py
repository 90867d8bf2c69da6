"""`msa ask` by hand: how tokens are drawn, how many, and what is refused."""

import json

import pytest

from data_pipeline.schema import Document
from msa_train.cli import main
from msa_train.commands.ask import show_stream
from msa_train.interop.export import LoadedModel
from msa_train.memory.bank.build import build_bank
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.writer import BankWriter
from msa_train.memory.engine.events import Evidence, TextPiece
from tests.memory.tiny import FINGERPRINT, tiny_documents, tiny_model, tiny_tokenizer


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """ask(argument, ...) -> exit code, standard output, standard error."""
    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), FINGERPRINT)
    monkeypatch.setattr("msa_train.interop.export.load_export", lambda folder, placed: loaded)
    build_bank(tmp_path / "bank", loaded.model, loaded.tokenizer, tiny_documents(), FINGERPRINT)

    def run(*arguments):
        begun = ["ask", "export", str(tmp_path / "bank"), "Who sleeps?", "--retrieval", "memory"]
        code = main([*begun, *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def answer_of(ask, *arguments):
    code, out, _ = ask(*arguments, "--json")
    assert code == 0
    return json.loads(out)[0]


def test_a_seed_draws_the_same_text_again(ask):
    drawn = [
        answer_of(ask, "--temperature", 1.5, "--top-p", 0.95, "--seed", seed)["text"]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert answer_of(ask)["text"] == answer_of(ask, "--seed", 5)["text"]  # greedy draws nothing


def test_an_answer_has_at_most_so_many_tokens(ask):
    whole, cut = answer_of(ask), answer_of(ask, "--max-tokens", 3)
    assert cut["forced"] == ["3 tokens of answer"]
    assert len(cut["text"]) < len(whole["text"]) and whole["text"].startswith(cut["text"])


def test_events_are_shown_as_they_come(ask):
    code, out, _ = ask("--max-tokens", 3)
    assert code == 0
    assert "? Who sleeps?\n  round 1: routed to (score in each router layer, mean)\n" in out
    assert "\n  (3 tokens of answer)\n" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--temperature", -1), "temperature is -1.0"),
        (("--top-p", 0), "top_p is 0.0"),
        (("--max-tokens", 0), "answer_tokens is 0"),
        (("--where", "{"), "--where {: not JSON"),
        (("--where", "[" * 10**5), "--where [[["),
        (("--where", "[]"), "give an object"),
        (("--where", '{"id": "d2"}'), "unknown key 'id'"),
        (("--where", '{"numbers": [4]}'), "no document of"),
        (("--hybrid", "bm25"), "--retrieval is memory: give --retrieval router"),
    ],
)
def test_impossible_settings_are_refused(ask, arguments, said):
    code, _, err = ask(*arguments)
    assert code == 2 and said in err


def test_a_blank_question_is_refused(capsys):
    assert main(["ask", "export", "bank", "Who sleeps?", " "]) == 2
    assert "a question is ' '" in capsys.readouterr().err


def test_an_empty_bank_is_not_asked(ask, tmp_path):
    with BankWriter(tmp_path / "bank", "remove") as writer:
        writer.remove(BankSnapshot.open(tmp_path / "bank").numbers.tolist())
    for more in ((), ("--where", '{"numbers": [3]}'), ("--json",)):
        code, out, err = ask(*more)
        assert code == 5 and not out and "has no documents to answer from" in err


def test_where_says_which_documents_answer(ask):
    for where, numbers in (
        ({"numbers": [3, 17]}, [3, 17]),
        ({"ids": ["d17", "d40"], "numbers": [3, 17]}, [17]),
    ):
        (answer,) = json.loads(ask("--where", json.dumps(where), "--json")[1])
        (found,) = answer["rounds"]
        assert sorted(number for number, _ in found["chosen"]["voted"]) == numbers
    assert "[17]" in ask("--where", '{"ids": ["d17"]}')[1]


def test_a_document_does_not_command_the_terminal(capsys):
    document = Document(3, "The code\x1b]0;title\x07 is\x1b[2J 4711.")
    show_stream(iter([TextPiece("answer", "a\x9bb\n"), Evidence((document,))]))
    shown = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\x9b"} & set(shown) and "4711." in shown


def test_words_choose_texts_with_the_router(ask, monkeypatch):
    """Who chose is told in words and in JSON; without the packages nothing is loaded."""
    given = "--retrieval", "router", "--hybrid", "bm25", "--max-tokens", 3
    first, last = answer_of(ask, *given)["rounds"]
    (number, score, vote, bm25), *_ = first["chosen"]["fused"]
    assert number == 17 and bm25 > 0, "cranes sleep, and no other document does"
    assert last["chosen"]["fused"] is None
    out = ask(*given)[1]
    assert "(score in each router layer, mean; BM25; both as z-scores)" in out
    assert f"mean {vote:.3f}  BM25 {bm25:.2f}  both {score:.2f}\n" in out
    only = answer_of(ask, *given, "--where", '{"numbers": [3, 40]}')["rounds"][0]["chosen"]
    assert sorted(each[0] for each in only["fused"]) == [3, 40]
    assert answer_of(ask, *given[:2])["rounds"][0]["chosen"]["fused"] is None
    monkeypatch.setattr("msa_train.memory.search.hybrid.find_spec", lambda name: None)
    monkeypatch.setattr("msa_train.interop.export.load_export", lambda folder: 1 / 0)
    code, _, err = ask(*given)
    assert code == 7 and "pip install 'msa-train[hybrid]'" in err
