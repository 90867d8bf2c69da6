"""Continual training on two ranks: from an export, router alone, held-out tracking, key queue."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_pipeline.dataset import Passage, Question, write_dataset
from data_pipeline.shards.build import build_shards
from data_pipeline.shards.reader import ShardReader
from msa_train import checkpoint_folders
from msa_train.config import load_config
from msa_train.errors import CheckpointError
from msa_train.interop.export import export
from msa_train.model.weights import initial_reader, megatron_shard, weight_maps
from msa_train.training.initial_weights import starting_weights
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import logged, settings, train_all

STAGES = (
    "[{{name: main, steps: 4, lr: 1e-2, router_weight: 1, trains: {trains}, "
    "queue_documents: {queue}, "
    "data: {{weights: {{niah: 1, rivers: 1}}}}}}]"
)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Settings of a run with plain text in it, and its shards: called with overrides."""
    root = tmp_path_factory.mktemp("continual")
    passages = [Passage(f"p{i}", "", f"River number {i} flows to the sea.") for i in range(40)]
    asked = [Question(f"q{i}", f"Where flows river {i}?", ("sea",), (f"p{i}",)) for i in range(20)]
    write_dataset(root / "rivers", passages, [("train", q) for q in asked])
    source = {
        "path": str(root / "rivers"), "held_out_split": "train", "made_held_out_share": 0.3,
        "tasks": {"given": 1, "text": 1}, "bank": {"documents": 8, "contexts": 6},
    }  # fmt: skip

    def arguments(name, trains="all", queue=0, **overrides):
        own = {
            "stages": STAGES.format(trains=trains, queue=queue),
            "training__shards": root / "shards",
            "data__datasets": json.dumps({"rivers": source}), "training__held_out_samples": 6,
        }  # fmt: skip
        return settings(root / name, **(own | overrides))

    config = load_config(arguments("unused"))
    build_shards(config.corpus, root / "shards", 1)
    arguments.root, arguments.config = root, config
    return arguments


def train(command, runs):
    """Outputs of runs that are trained on two ranks: name -> (folder, result)."""
    root, jobs = command.root, []
    for name, overrides in runs.items():
        if "training__held_out_every" in overrides:
            tokenizer = ShardReader(root / "shards").tokenizer()
            held_out = command.config.held_out
            build_shards(held_out, root / name / "held_out", 1, tokenizer, held_out=True)
        stop = 2 if name.startswith("stopped") else None
        jobs.append({"arguments": command(name, **overrides), "stop_after": stop})
    results = run_ranks(2, train_all, jobs)[0]
    return {name: (root / name, result) for name, result in zip(runs, results, strict=True)}


@pytest.fixture(scope="module")
def first(command):
    queue = {"queue": 30}
    return train(
        command,
        {
            "plain": {},
            "watched": {"training__held_out_every": 2},
            "queued": queue,
            "queued-again": queue,
            "queued2": queue | {"training__zero_stage": 2},
            "stopped-queued2": queue | {"training__zero_stage": 2},
            "queued-cached": queue | {"training__gradient_cache_tokens": 100},
        },
    )


@pytest.fixture(scope="module")
def start(first, command):
    export(first["watched"][0], command.root / "export")
    return command.root / "export"


@pytest.fixture(scope="module")
def continued(start, command):
    begin = {"training__start_from": start}
    return train(
        command,
        {
            **{
                f"router{stage}": begin | {"trains": "router", "training__zero_stage": stage}
                for stage in (0, 1, 2, 3)
            },
            "watched-on": begin | {"training__held_out_every": 4},
        },
    )


@pytest.fixture(scope="module")
def readers(command):
    """The reader alone, under every ZeRO stage: a router in the first layer of two or more."""
    own = {"trains": "reader", "model__router__layers": "0", "model__router__loss_layers": "all"}
    return train(
        command,
        {f"reader{stage}": own | {"training__zero_stage": stage} for stage in (0, 1, 2, 3)},
    )


def weights(folder):
    newest = next(checkpoint_folders.newest_first(folder / "checkpoints"))
    return load_file(newest / "weights-tp0.safetensors")


def test_held_out_numbers_are_tracked_and_change_nothing(first):
    rows = logged(first["watched"][0])
    tracked = {row["step"]: row for row in rows if "held_out/niah/lm" in row}
    assert list(tracked) == [0, 2, 4]
    for row in tracked.values():
        assert 0 <= row["held_out/niah/recall@1"] <= row["held_out/niah/recall@k"] <= 1
        assert row["held_out/rivers_text/perplexity"] > 1
        change = row["held_out/rivers_text/lm"] - tracked[0]["held_out/rivers_text/lm"]
        assert row["held_out/rivers_text/forgetting"] == pytest.approx(change)
    assert tracked[4]["held_out/rivers_text/lm"] < tracked[0]["held_out/rivers_text/lm"]
    plain = weights(first["plain"][0])
    for name, weight in weights(first["watched"][0]).items():
        assert torch.equal(weight, plain[name]), name


def test_a_run_starts_where_the_export_stands(first, continued):
    before = [r for r in logged(first["watched"][0]) if "held_out/niah/lm" in r][-1]
    after = next(r for r in logged(continued["watched-on"][0]) if "held_out/niah/lm" in r)
    assert after["step"] == 0
    for key in ("niah/lm", "niah/router", "rivers/lm", "rivers_text/lm", "niah/recall@k"):
        assert after[f"held_out/{key}"] == pytest.approx(before[f"held_out/{key}"], rel=1e-6), key


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_router_trains_alone(first, continued, stage):
    start, end = weights(first["watched"][0]), weights(continued[f"router{stage}"][0])
    for name, weight in end.items():
        assert torch.equal(weight, start[name]) != (".router_" in name), name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_reader_trains_alone(readers, command, stage):
    folder = readers[f"reader{stage}"][0]
    model = load_config(command("x", model__router__layers="0")).model
    maps = {each.megatron: each for each in weight_maps(model)}
    for name, weight in weights(folder).items():
        begun = megatron_shard(maps[name], initial_reader(model, 0), model, 0, 1)
        reads = "embedding" not in name and ".layers.0." not in name
        assert torch.equal(weight, begun) != reads, name
        equal = weights(readers["reader1"][0])[name]
        torch.testing.assert_close(weight, equal, rtol=0, atol=1e-5)


def test_queued_documents_make_the_router_loss_harder(first):
    plain, queued = (logged(first[name][0]) for name in ("plain", "queued"))
    assert queued[0]["loss/router"] == plain[0]["loss/router"], "the queue is empty at first"
    assert queued[1]["loss/router"] > plain[1]["loss/router"] + 0.1


@pytest.mark.parametrize(
    ("name", "whole"), [("queued-again", "queued"), ("stopped-queued2", "queued2")]
)
def test_a_run_with_a_queue_is_reproducible_and_continues(first, name, whole):
    expected = weights(first[whole][0])
    for key, weight in weights(first[name][0]).items():
        assert torch.equal(weight, expected[key]), key


def test_the_gradient_cache_sees_the_same_queue(first):
    plain, cached = (logged(first[name][0]) for name in ("queued", "queued-cached"))
    for a, b in zip(plain, cached, strict=True):
        assert a["loss/router"] == pytest.approx(b["loss/router"], rel=2e-5)


def test_a_backbone_without_a_router_gets_one_of_its_keys(start, command, tmp_path):
    stored = load_file(start / "model.safetensors")
    backbone = {name: w for name, w in stored.items() if ".router_" not in name}
    save_file(backbone, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((start / "config.json").read_text())
    config = load_config(command("x", training__start_from=tmp_path))
    read, prefix = starting_weights(config), "model.layers.1.self_attn."
    keys = stored[f"{prefix}k_proj.weight"]
    assert torch.equal(read(f"{prefix}router_k_proj.0.weight"), keys)
    queries = read(f"{prefix}router_q_proj.0.weight").unflatten(0, (2, 2, 8))
    for repeated in queries.unbind(1):
        assert torch.equal(repeated.flatten(0, 1), keys)
    assert float(read(f"{prefix}router_gate")) == config.model.router.gate_start
    assert torch.equal(read(f"{prefix}q_proj.weight"), stored[f"{prefix}q_proj.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model__ffn": 64}, r"mlp\.gate_proj\.weight has shape"),
        ({"model__layers": 3}, r"has no weight model\.layers\.2"),
        ({"model__layers": 1}, "weights that model"),
        ({"model__rope_theta": 5e5}, r"model\.rope_theta is 500000\.0"),
    ],
)
def test_a_start_of_another_model_is_refused(start, command, change, words):
    config = load_config(command("x", training__start_from=start, **change))
    with pytest.raises(CheckpointError, match=words):
        starting_weights(config)


def test_a_start_that_is_not_there_is_refused(command, tmp_path):
    config = load_config(command("x", training__start_from=tmp_path))
    with pytest.raises(CheckpointError, match=r"no readable config\.json"):
        starting_weights(config)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        starting_weights(config)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        starting_weights(config)
