"""`msa import`: its report, its JSON, and its exit codes."""

import json

import pytest

from msa_train.cli import main
from tests.data_pipeline.tokenizer.test_huggingface import ENDS, LACKING, trained
from tests.interop.backbones.models import random_model, save


@pytest.fixture
def source(tmp_path):
    return save(random_model("qwen2-yarn"), tmp_path / "source", trained(LACKING, ENDS))


def test_a_report_is_printed(source, tmp_path, capsys):
    target = tmp_path / "start"
    assert main(["import", str(source), str(target), "--router-layers", "1"]) == 0
    shown = capsys.readouterr().out
    for words in (
        f"{target}: source, licence not stated", "qwen2, 4 layers", "routers in layers 1,",
        "F32 read", "float32 written", "of 512 rows", "<|object_ref_end|>: spelled in",
        "positions: yarn, 4x", "chat template: none",
    ):  # fmt: skip
        assert words in shown


def test_json_is_the_whole_report(source, tmp_path, capsys):
    given = ["--protocol-tokens", "add", "--dtype", "bfloat16", "--json"]
    assert main(["import", str(source), str(tmp_path / "start"), *given]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["architecture"] == "qwen2" and report["router_layers"] == [2, 3]
    assert report["rope_scaling"]["factor"] == 4.0
    assert "added as token" in report["protocol_tokens"]["<|object_ref_end|>"]
    assert report["written"].keys() == {"bfloat16"}


def test_errors_have_codes_of_their_own(source, tmp_path, capsys):
    assert main(["import", str(tmp_path / "nowhere"), str(tmp_path / "start")]) == 4
    assert "does not exist" in capsys.readouterr().err
    assert main(["import", str(source), str(source)]) == 4
    other = ["--router-layers", "77"]
    assert main(["import", str(source), str(tmp_path / "start"), *other]) == 2
    (source / "tokenizer.json").write_text("{}")
    assert main(["import", str(source), str(tmp_path / "start")]) == 3
    assert not (tmp_path / "start").exists()
