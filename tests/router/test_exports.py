"""An export in, one with another router out."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml

from data_pipeline.dataset import Passage, Question, write_dataset
from data_pipeline.errors import DataError
from msa_train.errors import CheckpointError, ConfigError
from msa_train.interop.export import Placement, load_export
from msa_train.model.config import ModelConfig
from msa_train.router.exports import fit_router, probe_layers, start_router
from msa_train.router.settings import FitSettings, ProbeSettings, StartSettings
from tests.memory.building import encode_in_memory
from tests.memory.tiny import tiny_documents, tiny_export

WORDS = ("harbour", "code", "lighthouse", "keeper", "crane", "water", "rain", "boat", "tide",
         "storm", "gull", "rope", "sail")  # fmt: skip
SETTINGS = StartSettings(layers="1,2", key_heads=3, head_dim=10)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return tiny_export(tmp_path_factory.mktemp("router") / "export")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    draw = torch.Generator().manual_seed(0)
    rows = [
        [WORDS[i] for i in torch.randint(0, len(WORDS), (9,), generator=draw)] for _ in range(60)
    ]
    passages = [Passage(str(n), f"{row[0]} {n}", " ".join(row) + ".") for n, row in enumerate(rows)]
    questions = [
        ("train", Question(str(n), f"{row[0]} {n}?", (), (str(n),))) for n, row in enumerate(rows)
    ]
    folder = tmp_path_factory.mktemp("router") / "set"
    write_dataset(folder, passages, questions)
    return str(folder)


@pytest.fixture(scope="module")
def started(export, dataset, tmp_path_factory):
    target = tmp_path_factory.mktemp("router") / "started"
    return target, start_router(export, [dataset], target, SETTINGS)


def test_a_start_is_an_export_with_the_backbone_as_it_was(export, started):
    target, report = started
    ours, before = load_export(target), load_export(export)
    assert ours.fingerprint == report["fingerprint"]
    assert (report["layers"], report["reads"], report["documents"]) == ([1, 2], [], 60)
    kept = {n: w for n, w in ours.model.state_dict().items() if "router" not in n}
    assert all(torch.equal(w, before.model.state_dict()[n]) for n, w in kept.items())
    assert ours.model.state_dict()["model.layers.1.self_attn.router_k_proj.0.weight"].shape == (
        30, 32,
    )  # fmt: skip
    view = encode_in_memory(ours.model, ours.tokenizer, tiny_documents())
    assert len(view) == len(tiny_documents())


def test_a_fit_is_written_with_what_it_reached(started, dataset, tmp_path):
    target, report = tmp_path / "fitted", None
    settings = FitSettings(pairs=50, steps=20, look_every=10, questions=20, documents=30)
    report = fit_router(started[0], [dataset], target, "train", settings, tmp_path / "means")
    assert report["pairs"] == {dataset: 50}
    assert [look["step"] for look in report["looks"]] == [0, 10, 20]
    fitted = load_export(target).model.state_dict()
    begun = load_export(started[0]).model.state_dict()
    changed = {n.split(".")[4] for n, w in fitted.items() if not torch.equal(w, begun[n])}
    assert report["best_step"] > 0 and changed == {"router_q_proj", "router_k_proj"}
    json.dumps(report)


def test_a_fit_finds_the_means_of_the_start(export, dataset, tmp_path, monkeypatch):
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "The keeper of the lighthouse sleeps all day."}\n' * 3)
    kept, corpora = tmp_path / "means", [dataset, str(other)]
    start_router(export, corpora, tmp_path / "begun", SETTINGS, kept)
    monkeypatch.setattr("msa_train.router.means.document_means", None)
    few = FitSettings(steps=1, questions=2, documents=3)
    fit_router(tmp_path / "begun", corpora, tmp_path / "fitted", "self-made", few, kept)


@pytest.mark.parametrize("place", ["file/out", "out"])
def test_what_cannot_be_written_is_refused_before_anything_is_computed(
    export, dataset, tmp_path, monkeypatch, place
):
    (tmp_path / "file").write_text("")
    kept = tmp_path / ("means" if place.startswith("file") else "file/means")
    monkeypatch.setattr("msa_train.router.means.document_means", None)
    with pytest.raises((CheckpointError, DataError), match="file"):
        start_router(export, [dataset], tmp_path / place, SETTINGS, kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_probe_ranks_every_layer_and_chooses_those_that_help(export, dataset):
    report = probe_layers(export, dataset, "self-made", ProbeSettings())
    assert [each["layer"] for each in report["layers"]] == [0, 1, 2, 3]
    assert 1 <= len(report["chosen"]) <= 3
    best = max(sum(each["recall"]) for each in report["layers"])
    assert sum(report["vote"]) >= best


def test_a_probe_of_part_of_a_dataset_asks_about_that_part(export, dataset):
    report = probe_layers(export, dataset, "train", ProbeSettings(passages=20))
    assert report["documents"] == report["questions"] == 20


def test_the_model_card_speaks_of_the_new_router(export, dataset, tmp_path):
    source = tmp_path / "imported"
    shutil.copytree(export, source)
    (source / "README.md").write_text("# A\n\nmade of B\n\n## Routers\n\nIn layers 2, 3: old.\n")
    start_router(source, [dataset], tmp_path / "own", SETTINGS)
    card = (tmp_path / "own" / "README.md").read_text()
    assert "made of B" in card and "layers 2, 3" not in card and "In layers 1, 2" in card
    settings = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])["model"]
    assert ModelConfig.from_settings(settings).router == replace(
        load_export(tmp_path / "own").model.config.router, gate="threshold"
    )


def test_a_router_that_is_not_pooled_is_refused_before_anything_is_encoded(
    export, dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr("msa_train.router.exports.cached_examples", None)
    with pytest.raises(ConfigError, match="query_reduce 'max'"):
        fit_router(export, [dataset], tmp_path / "out", "train", FitSettings())


def test_a_folder_that_exists_is_left_alone(export, dataset, started):
    for run in (
        lambda: start_router(export, [dataset], started[0], SETTINGS),
        lambda: fit_router(started[0], [dataset], started[0], "train", FitSettings()),
    ):
        with pytest.raises(CheckpointError, match="exists"):
            run()


def test_means_in_bfloat16_leave_the_backbone_exact(export, dataset, started, tmp_path):
    rough = start_router(
        export, [dataset], tmp_path / "rough", SETTINGS, placed=Placement(compute="bfloat16")
    )
    ours, before = load_export(tmp_path / "rough").model, load_export(export).model
    kept = {n: w for n, w in ours.state_dict().items() if "router" not in n}
    assert all(torch.equal(w, before.state_dict()[n]) for n, w in kept.items())
    assert rough["chunks"] == started[1]["chunks"]
    exact = load_export(started[0]).model.state_dict()
    name = "model.layers.1.self_attn.router_k_proj.0.weight"
    assert not torch.equal(ours.state_dict()[name], exact[name])
