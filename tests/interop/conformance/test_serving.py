"""Serving cases: our model against a dense second implementation of the publication."""

import pytest
from safetensors.torch import load_file

from msa_train.interop.conformance.cases import run_case
from tests.interop.conformance.altering import alter
from tests.interop.conformance.published_cases import write_serving
from tests.interop.conformance.published_variants import SERVING


@pytest.mark.parametrize("variant", SERVING, ids=lambda v: v.name)
def test_serving_variant(variant, tmp_path):
    report = run_case(write_serving(variant, tmp_path))
    assert report.passed, report.line()
    assert report.compared > 15


@pytest.mark.parametrize("part", ["memory", "query"])
def test_every_altered_tensor_of_serving_fails_by_name(serving, part):
    path = serving / f"{part}.safetensors"
    original = path.read_bytes()
    given = {"input_ids", "position_ids", "doc_ids", "attention_mask", "step_attention"}
    for name in load_file(path):
        if name in given or name.startswith("stage1"):
            continue
        alter(path, name)
        assert any(name in failure for failure in run_case(serving).failures), name
        path.write_bytes(original)
    assert run_case(serving).passed
