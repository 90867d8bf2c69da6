"""`msa conformance DIR`: a line per case, and an exit code."""

from safetensors.torch import load_file, save_file

from msa_train.cli import main
from tests.interop.conformance.published_cases import write_training
from tests.interop.conformance.published_variants import Training, published_config


def test_cases_are_compared_and_a_difference_has_an_exit_code(tmp_path, capsys):
    config = published_config(layers=2, router_layer_idx="1")
    case = write_training(Training("training", config), tmp_path)
    assert main(["conformance", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("1 of 1 cases pass\n")
    outputs = case / "outputs.safetensors"
    save_file({name: x + 1 for name, x in load_file(outputs).items()}, outputs)
    assert main(["conformance", str(tmp_path)]) == 6
    assert capsys.readouterr().out.endswith("0 of 1 cases pass\n")


def test_a_folder_without_cases_is_named(tmp_path, capsys):
    assert main(["conformance", str(tmp_path)]) == 6
    assert str(tmp_path) in capsys.readouterr().err
