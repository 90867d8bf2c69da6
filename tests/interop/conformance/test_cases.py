"""Cases of a directory: found, compared, and broken ones reported (SPEC section 6)."""

import os
from pathlib import Path

import pytest

from msa_train.errors import ConformanceError
from msa_train.interop.conformance.cases import find_cases, run_case
from tests.interop.conformance.altering import change_msa_config

ROOT = Path(__file__).resolve().parents[3]
GIVEN = Path(os.environ.get("MSA_CONFORMANCE", ROOT.parent / "shared" / "conformance"))


def test_a_missing_weights_file_is_a_failed_case(training, serving):
    (training / "weights.safetensors").unlink()
    (serving.parent / "serving_weights" / "weights.safetensors").unlink()
    for case in (training, serving):
        report = run_case(case)
        assert not report.passed
        assert "weights.safetensors" in report.line()


@pytest.mark.parametrize("damage", [b"", b"{}", b"null", b"[]"])
@pytest.mark.parametrize("file", ["meta.json", "weights.safetensors", "outputs.safetensors"])
def test_a_damaged_file_is_a_failed_case(training, file, damage):
    (training / file).write_bytes(damage)
    report = run_case(training)
    assert report.line().startswith("FAIL")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("aux_loss_method", "BCE"),
        ("aux_loss_method", "INFONCE_FOCAL"),
        ("aux_loss_method", "INFONCE_DECOUPLE_FOCAL"),
        ("rewrite_position", False),
        ("decouple_pooling_mode", "max"),
    ],
)
def test_a_config_outside_the_supported_publication_is_refused_by_name(
    training, serving, key, value
):
    for case in (training, serving):
        change_msa_config(case, **{key: value})
        (failure,) = run_case(case).failures
        assert f"msa_config.{key}" in failure
        assert str(value).lower() in failure.lower()


def test_a_directory_without_cases_is_an_error(tmp_path):
    with pytest.raises(ConformanceError, match="no conformance case"):
        find_cases(tmp_path)


def test_cases_are_the_directories_with_a_meta_file(training, serving):
    assert find_cases(training.parent) == [serving, training]


@pytest.mark.skipif(
    "MSA_CONFORMANCE" not in os.environ and not GIVEN.is_dir(),
    reason=f"no published numbers: {GIVEN} does not exist and MSA_CONFORMANCE is not set",
)
def test_the_published_numbers():
    for case in find_cases(GIVEN):
        report = run_case(case)
        assert report.passed, report.line()
