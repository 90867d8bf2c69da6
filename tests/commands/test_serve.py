"""`msa serve` with settings that cannot be: refused by name, before anything is served."""

import pytest

from msa_train.cli import main
from msa_train.interop.export import LoadedModel


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "--bank NAME=PATH or --banks-dir"),
        (["--bank", "notes"], 2, "--bank notes: give NAME=PATH"),
        (["--bank", "a=x", "--host", "0.0.0.0"], 2, "--host 0.0.0.0"),
        (["--bank", "a=x", "--host", "example.org"], 2, "--host example.org"),
        (["--bank", "a=x", "--api-keys", "nothing"], 2, "--api-keys nothing"),
        (["--bank", "a=x", "--max-concurrent", "0"], 2, "--max-concurrent is 0"),
        (["--bank", "a=x", "--timeout-s", "-1"], 2, "--timeout-s is -1"),
        (["--bank", "a=x", "--keys", "int4"], 2, "keys is 'int4'"),
        (["--bank", "a=x", "--states", "cloud"], 2, "states is 'cloud'"),
        (["--bank", "a=x", "--queue", "-1"], 2, "--queue is -1: give a number from 0"),
        (["--bank", "a=x", "--hot-mb", "nan"], 2, "hot_mb is nan"),
        (["--bank", "a=x", "--rank-timeout-s", "0"], 2, "--rank-timeout-s 0"),
        (["--bank", "a=x", "--rank-start-timeout-s", "0"], 2, "--rank-start-timeout-s 0"),
        (["--banks-dir", "file"], 2, "--banks-dir file: File exists"),
        (["--bank", "a=x", "--ranks", "0"], 2, "--ranks 0"),
        (["--bank", "a=x", "--device", "tpu"], 2, "--device tpu"),
        (["--bank", "a=x"], 5, "x is no memory bank"),
        (["--bank", "a b=x"], 2, "'a b'"),
        (["--bank", "a=bank", "--bank", "a=bank"], 2, "already"),
        (["--bank", "a=bank", "--port", "99999"], 2, "--port 99999"),
        (["--bank", "a=bank", "--host", "127.0.0.1", "--port", "1"], None, "--port 1"),
    ],
)
def test_what_cannot_be_is_named(tmp_path, monkeypatch, capsys, arguments, code, said):
    from tests.memory.tiny import FINGERPRINT, tiny_model, tiny_tokenizer
    from tests.serving.running import tiny_bank

    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), FINGERPRINT)
    monkeypatch.setattr("msa_train.interop.export.load_export", lambda folder, placed: loaded)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    if "a=bank" in arguments:
        tiny_bank(tmp_path / "bank")
    if code is None:  # root may listen there
        monkeypatch.setattr("socket.create_server", refuse)
        code = 2
    found = main(["serve", "export", *arguments])
    captured = capsys.readouterr()
    assert found == code and said in captured.err and "serving" not in captured.out


def refuse(*_, **__):
    raise PermissionError(13, "Permission denied")


def test_missing_packages_are_named_before_a_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr("msa_train.memory.search.hybrid.find_spec", lambda name: None)
    assert main(["serve", "export", "--bank", "a=x", "--hybrid", "bm25"]) == 7
    assert "--hybrid bm25 needs the packages bm25s and PyStemmer" in capsys.readouterr().err


def test_no_export_is_named(tmp_path, capsys):
    assert main(["serve", str(tmp_path), "--bank", "a=x"]) == 4
    assert "no complete export" in capsys.readouterr().err
