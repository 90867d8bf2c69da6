import json
from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.settings import CorpusStage, StageData
from data_pipeline.shards.manifest import INDEX_DTYPE, ShardManifest, load_index
from data_pipeline.shards.reader import ShardReader


@pytest.fixture
def built(shards):
    return shards, ShardManifest.load(shards)


def test_the_index_points_at_every_sample(built, samples):
    folder, manifest = built
    index = load_index(folder, manifest)
    assert isinstance(index, np.memmap) and index.dtype == INDEX_DTYPE
    assert index["shard"].tolist() == [0] * 10 + [1] * 10 + [2] * 4
    assert index["stage"].tolist() == [0] * 6 + [1] * 6 + [2] * 12
    reader = ShardReader(folder)
    assert [reader[i] for i in range(len(reader))] == samples


def test_the_manifest_tells_origin_and_counts(built, samples, tokenizer):
    folder, manifest = built
    assert (
        manifest.tokenizer == tokenizer.fingerprint == ShardReader(folder).tokenizer().fingerprint
    )
    assert manifest.samples == 24
    assert [stage.samples for stage in manifest.stages] == [6, 6, 12]
    assert sum(stage.documents for stage in manifest.stages) == sum(
        len(sample.documents) for sample in samples
    )
    assert manifest.stages[0].measured == 1 and manifest.stages[0].document_tokens > 100
    assert manifest.shards == tuple(
        (folder / f"shard-{i:06d}.tar").stat().st_size for i in range(3)
    )


def with_data(corpus, **settings):
    return replace(corpus, data=replace(corpus.data, **settings))


def needles(corpus, samples):
    return replace(corpus, stages=(CorpusStage(StageData(weights={"niah": 1.0}), samples=samples),))


def test_a_manifest_knows_its_settings(built, corpus):
    manifest = ShardManifest.load(built[0])
    assert manifest.matches(corpus)
    assert manifest.matches(with_data(corpus, workers=9))
    assert not manifest.matches(with_data(corpus, seed=1))
    assert not manifest.matches(needles(corpus, 24))
    assert manifest.steps == (6, 6, 12)
    assert manifest.settings["data"]["tokenizer"]["model_type"] == "bpe", "as in older shard sets"


def test_a_manifest_names_what_differs(built, corpus):
    differences = built[1].differences
    assert not differences(with_data(corpus, workers=9))
    batch = f"training.batch_samples ({corpus.batch_samples}, now 64)"
    assert differences(replace(corpus, batch_samples=64)) == batch
    more = tuple(replace(stage, samples=64) for stage in corpus.stages)
    assert differences(replace(corpus, batch_samples=64, stages=more)).startswith(batch)
    fewer = replace(corpus, stages=corpus.stages[:-1])
    assert differences(fewer).startswith("stages[2] ({") and "now not given" in differences(fewer)
    many = with_data(corpus, seed=1, numbers=replace(corpus.data.numbers, limit=77), datasets={})
    changed = replace(replace(many, batch_samples=64), stages=corpus.stages[:-1])
    assert differences(changed).count(", now ") == 3 and ", and 1 more" in differences(changed)


@pytest.mark.parametrize(
    ("now", "begins"),
    [
        ([("samples", 6, 1), ("tokens", 900, 2)], True),
        ([("samples", 8, 1), ("tokens", 900, 2)], True),
        ([("samples", 6, 1), ("tokens", 1350, 3)], True),
        ([("samples", 6, 1), ("tokens", 900, 2), ("samples", 1, 1)], True),
        ([("samples", 6, 1)], False),
        ([("samples", 5, 1), ("tokens", 900, 2)], False),
        ([("samples", 6, 1), ("tokens", 899, 2)], False),
        ([("samples", 6, 1), ("tokens", 900, 3)], False),
        ([("samples", 6, 1), ("tokens", 900, 1)], False),
        ([("samples", 6, 1), ("samples", 900, 2)], False),
        ([("tokens", 600, 1), ("tokens", 900, 2)], False),
    ],
)
def test_a_manifest_knows_what_it_is_the_beginning_of(built, corpus, now, begins):
    """tokens are those of all epochs, samples those of one."""

    def of(stages):
        each = (CorpusStage(epochs=epochs, **{kind: count}) for kind, count, epochs in stages)
        return replace(corpus, stages=tuple(each))

    settings = of([("samples", 6, 1), ("tokens", 900, 2)]).settings()
    manifest = replace(built[1], settings=settings)
    assert manifest.begins(of(now)) == begins
    assert not manifest.begins(replace(of(now), batch_samples=5))
    assert not manifest.begins(with_data(of(now), seed=1))
    other = replace(of(now).stages[0], data=StageData(document_tokens=7))
    assert not manifest.begins(replace(of(now), stages=(other, *of(now).stages[1:])))


def test_broken_manifests_and_indices_are_refused(built, tmp_path):
    folder, manifest = built
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        ShardManifest.load(tmp_path)
    for text, words in [("{", "broken"), ("[]", "broken"), ('{"format": "x"}', "msa-shards-2")]:
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DataError, match=words):
            ShardManifest.load(tmp_path)
    data = json.loads((folder / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**data, "surprise": 1}))
    with pytest.raises(DataError, match="surprise"):
        ShardManifest.load(tmp_path)
    with pytest.raises(DataError, match=r"index\.npy cannot be read"):
        load_index(tmp_path, manifest)
    np.save(tmp_path / "index.npy", np.zeros(3, INDEX_DTYPE))
    with pytest.raises(DataError, match=r"3 rows.*24 samples"):
        load_index(tmp_path, manifest)
