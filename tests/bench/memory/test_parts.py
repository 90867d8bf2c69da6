"""The benchmark of memories at tiny sizes: what it measures is what it says."""

import json

import pytest

from msa_train.bench.memory import banks, parts, peers, pooled
from msa_train.bench.memory.sizes import QUICK
from msa_train.bench.train import MODEL
from msa_train.errors import ConfigError
from msa_train.interop.export import ON_CPU
from tests.bench.memory.tiny_sizes import SIZES, load


@pytest.fixture
def here(monkeypatch):
    """Rows are measured in this process."""
    for module in (banks, peers, pooled):
        monkeypatch.setattr(module, "in_process", lambda run, *arguments: run(*arguments))


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("one", "two"):
        (tmp_path / "texts" / name).mkdir()
        lines = [
            {"id": f"d{i}", "title": name, "text": f"Text {i} of {name}. " * 9} for i in range(40)
        ]
        (tmp_path / "texts" / name / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "texts"


def test_all_parts_but_the_large_layer(here, corpus):
    chosen = [part for part in parts.PARTS if part != "layer_4b"]
    found = parts.measure_parts(load, SIZES, corpus, chosen)
    assert json.loads(json.dumps(found)) == found
    small, large = found["scale"]
    assert (small["documents"], large["documents"]) == (40, 160)
    for row in found["scale"]:
        for name in ("tokens", "open_s", "route_ms", "floor_ms", "answer_ms", "rss_gb"):
            assert row[name] > 0
        assert row["floor_ms"] == max(row["read_ms"], row["gemm_ms"])
        assert 0 <= row["found"] <= 1 and row["layers"] == 2
    assert [row["form"] for row in found["pooled"]] == 2 * [
        "float16",
        "float32",
        "bfloat16",
        "int8",
    ]
    for row in found["pooled"]:
        assert row["vectors"] == 1 and row["layers"] == 2 and row["chunks"] in (40, 160)
        assert all(row[name] > 0 for name in ("route_ms", "read_ms", "gemm_ms", "cpu_ms"))
        assert row["ratio"] >= row["ratio_best"] > 0
    assert found["linearity"]["to_tokens"] == large["tokens"]
    assert found["real"]["tokens"] >= SIZES.real and found["real"]["tokens_per_s"] > 0
    for row in found["append"]["rows"]:
        assert row["visible"] == row["added"] == SIZES.added
        assert row["visible_s"] == pytest.approx(
            row["encode_s"] + row["commit_s"] + row["refresh_s"], abs=2e-3
        )
    assert found["faiss"]["same_documents"]
    assert [row["tokens"] for row in found["dense_ttft"]] == [60, 90]
    assert all(row["dense_s"] > 0 and row["ours_s"] > 0 for row in found["dense_ttft"])


def test_parts_come_in_their_order_and_unknown_ones_are_named():
    assert parts.known_parts(["faiss", "scale"]) == ("scale", "faiss")
    with pytest.raises(ConfigError, match="'tea': give some of scale"):
        parts.measure(parts=["scale", "tea"])


def test_without_an_export_random_weights_are_measured():
    found = parts.measure(quick=True, parts=["faiss"])
    assert found["model"] == "random weights" and found["machine"]["threads"] >= 1
    assert found["machine"]["device"] == "cpu"
    assert found["faiss"]["vectors"] == QUICK.vectors and found["faiss"]["same_documents"]
    model, tokenizer, fingerprint = parts._untrained(None, ON_CPU)
    assert model.config == MODEL and tokenizer is None and fingerprint["weights"] == "untrained"
    assert not any(weight.requires_grad for weight in model.parameters())
