"""Training cases: our model against a dense second implementation of the publication."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from msa_train.interop.conformance.cases import run_case
from tests.interop.conformance.altering import alter
from tests.interop.conformance.published_cases import write_training
from tests.interop.conformance.published_variants import TRAINING


@pytest.mark.parametrize("variant", TRAINING, ids=lambda v: v.name)
def test_training_variant(variant, tmp_path):
    report = run_case(write_training(variant, tmp_path))
    assert report.passed, report.line()
    assert report.compared > 20


@pytest.mark.parametrize("part", ["outputs", "grads"])
def test_every_altered_tensor_of_training_fails_by_name(training, part):
    path = training / f"{part}.safetensors"
    original = path.read_bytes()
    for name in load_file(path):
        alter(path, name)
        assert any(name in failure for failure in run_case(training).failures), name
        path.write_bytes(original)
    assert run_case(training).passed


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
