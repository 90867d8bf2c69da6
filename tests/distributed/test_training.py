"""Real DeepSpeed on gloo ranks: normalisation, ZeRO stages, tensor parallel, resume, export."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from msa_train.config import load_config
from msa_train.interop.export import export, load_export
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import example_batch, logged, settings, train_all

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    """Outputs of equal runs under different layouts: name -> (folder, results of rank 0)."""
    root = tmp_path_factory.mktemp("runs")
    every = {"training__checkpoint_every": 1, "training__keep_checkpoints": 4}
    layouts = {
        1: {"alone": {}},
        2: {
            **{f"zero{stage}": {"training__zero_stage": stage} for stage in STAGES},
            "stopped": {"training__zero_stage": 2},
            "stopped3": {"training__zero_stage": 3},
            **{
                f"bf16-zero{stage}": {"training__zero_stage": stage, "training__precision": "bf16"}
                for stage in STAGES[1:]
            },
            "stopped-bf16": {"training__zero_stage": 2, "training__precision": "bf16"},
            **{f"poisoned{stage}": every | {"training__zero_stage": stage} for stage in STAGES},
            "poisoned-bf16": every | {"training__zero_stage": 1, "training__precision": "bf16"},
            **{
                f"cached{stage}": {
                    "training__zero_stage": stage,
                    "training__gradient_cache_tokens": 170,
                }
                for stage in STAGES
            },
            **{
                f"documents{stage}": {
                    "training__zero_stage": stage,
                    "training__document_parallel": 2,
                }
                for stage in STAGES
            },
            "documents-cached3": {
                "training__zero_stage": 3,
                "training__document_parallel": 2,
                "training__gradient_cache_tokens": 90,
            },
            **{
                f"sharded{stage}": {
                    "training__zero_stage": stage,
                    "training__document_parallel": 2,
                    "training__pooled_states": "sharded",
                }
                for stage in (2, 3)
            },
            "diverged": {
                "training__skipped_steps_limit": 2,
                "training__checkpoint_every": 1,
                "training__keep_checkpoints": 1,
            },
        },
    }
    split = {"training__tensor_parallel": 2}
    sequence = split | {"training__sequence_parallel": True}
    tensor = {
        "tensor": split,
        "tensor-cached": split | {"training__gradient_cache_tokens": 170},
        "sequence-cached": sequence | {"training__gradient_cache_tokens": 170},
    }
    found = {}
    for ranks, group in ((1, layouts[1]), (2, layouts[2]), (2, tensor)):
        runs = [
            {
                "arguments": settings(root / name, training__shards=shards, **overrides),
                "stop_after": 2 if name.startswith("stopped") else None,
                "poison": (3,) if name.startswith("poisoned") else (3, 4) * (name == "diverged"),
            }
            for name, overrides in group.items()
        ]
        results = run_ranks(ranks, train_all, runs)[0]
        found |= {name: (root / name, r) for name, r in zip(group, results, strict=True)}
    return found


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    root = tmp_path_factory.mktemp("exports")
    for name, (folder, _) in trained.items():
        export(folder, root / name)
    return root


KINDS = ("zero", "cached", "documents")
LAYOUTS = [*(f"{kind}{stage}" for kind in KINDS for stage in STAGES)]
LAYOUTS += ["documents-cached3", "sharded2", "sharded3", "tensor", "tensor-cached"]
LAYOUTS += ["sequence-cached"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_losses_do_not_depend_on_the_layout(trained, name):
    expected, ours = logged(trained["alone"][0]), logged(trained[name][0])
    assert len(ours) == len(expected) == 4
    for a, b in zip(ours, expected, strict=True):
        keys = ["loss/lm", "loss/router", "router/layer_1_recall@1"]
        for key in keys + ["grad_norm"] * ("grad_norm" in a):  # stage 0 does not know it
            assert a[key] == pytest.approx(b[key], rel=2e-5), (key, a["step"])
    assert expected[-1]["loss/lm"] < expected[0]["loss/lm"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_trained_weights_do_not_depend_on_the_layout(exported, name):
    expected = load_export(exported / "alone").model.state_dict()
    for key, weight in load_export(exported / name).model.state_dict().items():
        torch.testing.assert_close(weight, expected[key], rtol=1e-3, atol=2e-4, msg=key)


@pytest.mark.parametrize(
    ("stopped", "whole"),
    [
        ("stopped", "zero2"),
        ("stopped3", "zero3"),
        ("stopped-bf16", "bf16-zero2"),
    ],
)
def test_a_stopped_run_continues_bit_for_bit(trained, exported, stopped, whole):
    assert trained[stopped][1]["codes"] == [143, 0]
    expected = load_export(exported / whole).model.state_dict()
    for key, weight in load_export(exported / stopped).model.state_dict().items():
        assert torch.equal(weight, expected[key]), key
    losses = [[step["loss/lm"] for step in logged(trained[name][0])] for name in (stopped, whole)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("layout", [*map(str, STAGES), "-bf16"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(trained, layout):
    """Steps 1 and 2 are as ever, step 3 changes nothing, step 4 trains on."""
    folder, result = trained[f"poisoned{layout}"]
    whole = "bf16-zero1" if layout == "-bf16" else f"zero{layout}"
    ours, expected = logged(folder), logged(trained[whole][0])
    assert result["codes"] == [0]
    assert [row["skipped_steps"] for row in ours] == [0, 0, 1, 1]
    assert ours[2]["loss/lm"] is None or ours[2]["loss/lm"] == expected[2]["loss/lm"]
    assert [row["loss/lm"] for row in ours[:2]] == [row["loss/lm"] for row in expected[:2]]
    assert ours[3]["loss/lm"] > 0
    before, after, final = (
        load_file(folder / "checkpoints" / f"step-{step:09d}" / "weights-tp0.safetensors")
        for step in (2, 3, 4)
    )
    for key, weight in after.items():
        assert torch.equal(weight, before[key]), key
    assert any(not torch.equal(weight, after[key]) for key, weight in final.items())


def test_too_many_such_steps_end_the_run_and_name_the_last_good_checkpoint(trained):
    folder, result = trained["diverged"]
    last = folder / "checkpoints" / "step-000000002"
    (said,) = result["codes"]
    assert "2 steps in a row, up to 4" in said and f"the last good checkpoint is {last}" in said
    assert json.loads((last / "state.json").read_text())["skipped"] == 0, "before the streak"


@pytest.mark.parametrize("name", [f"bf16-zero{stage}" for stage in STAGES[1:]])
def test_half_precision_follows_single_and_keeps_its_master_weights(trained, exported, name):
    expected, ours = logged(trained["alone"][0]), logged(trained[name][0])
    for a, b in zip(ours, expected, strict=True):
        assert a["loss/lm"] == pytest.approx(b["loss/lm"], rel=0.02), a["step"]
        assert a["loss/router"] == pytest.approx(b["loss/router"], rel=0.05), a["step"]
    expected = load_export(exported / "alone").model.state_dict()
    for key, weight in load_export(exported / name).model.state_dict().items():
        moved = float((weight - expected[key]).norm() / expected[key].norm())
        assert moved < 0.05, (key, moved)
        rounded = weight.bfloat16().float()
        assert weight.dim() < 2 or not torch.equal(weight, rounded), f"{key} lost its master"


@pytest.mark.parametrize("name", ["alone", "zero0", "zero1", "zero2", "tensor", "sequence-cached"])
def test_the_export_computes_what_was_trained(trained, exported, shards, name):
    folder, result = trained[name]
    model = load_export(exported / name).model
    with torch.no_grad():
        ours = model(example_batch(load_config(settings(folder, training__shards=shards)))).hidden
    np.testing.assert_allclose(ours.numpy(), result["hidden"], rtol=1e-5, atol=1e-5)
