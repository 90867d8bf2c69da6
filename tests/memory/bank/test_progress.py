"""The progress bar of an encoding: on a terminal only, and never in the way."""

from msa_train.memory.bank.encode import encode_documents
from msa_train.memory.bank.progress import EncodingProgress, with_progress
from tests.memory.tiny import tiny_documents, tiny_model, tiny_tokenizer


def batches():
    return list(encode_documents(tiny_model(), tiny_tokenizer(), tiny_documents(), 50))


def test_batches_pass_through_and_nothing_is_shown_elsewhere(capsys):
    given = batches()
    assert len(given) > 1
    passed = list(with_progress(given, 7))
    assert all(one is other for one, other in zip(passed, given, strict=True))
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_documents_and_tokens(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich, this makes it a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    with EncodingProgress(lambda: 9) as progress:
        progress.found(2)
        progress.encoded(3, 1500)
        progress.encoded(4, 600)
    shown = capsys.readouterr().err
    assert "9 documents" in shown and "2,100 tokens" in shown
