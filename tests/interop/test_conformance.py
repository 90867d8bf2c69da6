"""Our model against a dense second implementation of the published behaviour (SPEC section 6)."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from msa_train.errors import ConformanceError
from msa_train.interop.conformance.cases import find_cases, run_case
from tests.interop.published_cases import write_serving, write_training
from tests.interop.published_variants import (
    SERVING,
    TRAINING,
    Serving,
    Training,
    published_config,
)

ROOT = Path(__file__).resolve().parents[2]
GIVEN = Path(os.environ.get("MSA_CONFORMANCE", ROOT.parent / "shared" / "conformance"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def training(tmp_path):
    config = published_config(layers=2, router_layer_idx="1")
    return write_training(Training("training", config), tmp_path)


@pytest.fixture
def serving(tmp_path):
    config = published_config(layers=2, router_layer_idx="1")
    return write_serving(Serving("serving", config, ((9, 5), (14, 6, 2)), steps=2), tmp_path)


def alter(path: Path, name: str) -> None:
    """Add 1 to a tensor of whole numbers, 0.01 to any other."""
    tensors = load_file(path)
    tensors[name] = tensors[name] + (0.01 if tensors[name].is_floating_point() else 1)
    save_file(tensors, path)


def change_msa_config(case: Path, **entries) -> None:
    meta = json.loads((case / "meta.json").read_text())
    meta["config"]["msa_config"] |= entries
    (case / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("variant", TRAINING, ids=lambda v: v.name)
def test_training_variant(variant, tmp_path):
    report = run_case(write_training(variant, tmp_path))
    assert report.passed, report.line()
    assert report.compared > 20


@pytest.mark.parametrize("variant", SERVING, ids=lambda v: v.name)
def test_serving_variant(variant, tmp_path):
    report = run_case(write_serving(variant, tmp_path))
    assert report.passed, report.line()
    assert report.compared > 15


@pytest.mark.parametrize("part", ["outputs", "grads"])
def test_every_altered_tensor_of_training_fails_by_name(training, part):
    path = training / f"{part}.safetensors"
    original = path.read_bytes()
    for name in load_file(path):
        alter(path, name)
        assert any(name in failure for failure in run_case(training).failures), name
        path.write_bytes(original)
    assert run_case(training).passed


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


@pytest.mark.parametrize(
    ("weight", "first"),
    [
        ("model.embed_tokens.weight", "hidden_in.0"),
        ("model.layers.0.self_attn.k_norm.weight", "hidden_in.1"),
        ("model.layers.1.self_attn.router_k_proj.0.weight", "router_k_pooled.1"),
        ("model.norm.weight", "final_hidden"),
        ("lm_head.weight", "lm_loss"),
        ("temperature", "aux_loss"),
    ],
)
def test_an_altered_weight_fails_in_what_it_reaches(training, weight, first):
    path = training / "weights.safetensors"
    weights = load_file(path)
    noise = torch.randn(weights[weight].shape, generator=torch.Generator().manual_seed(0))
    weights[weight] += 0.05 * noise
    save_file(weights, path)
    report = run_case(training)
    assert any(first in failure for failure in report.failures), report.line()


def test_another_choice_of_documents_fails(training):
    meta = json.loads((training / "meta.json").read_text())
    meta["selected_docs"]["1"][0].reverse()
    (training / "meta.json").write_text(json.dumps(meta))
    (failure,) = run_case(training).failures
    assert failure.startswith("selected documents 1")


def test_a_gradient_that_nobody_expects_fails(training):
    path, name = training / "grads.safetensors", "model.layers.1.self_attn.router_q_proj.0.weight"
    grads = load_file(path)
    del grads[name]
    save_file(grads, path)
    (failure,) = run_case(training).failures
    assert name in failure


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
