import os
import shutil
import signal
import tarfile
from dataclasses import replace

import pytest
import webdataset

from data_pipeline.errors import DataError
from data_pipeline.schema import Sample
from data_pipeline.settings import CorpusStage, StageData
from data_pipeline.shards import build as build_module
from data_pipeline.shards.build import build_shards
from data_pipeline.shards.manifest import ShardManifest
from data_pipeline.shards.parts import whole_build
from data_pipeline.shards.sampling import SampleBuilder
from data_pipeline.tokenizer_training import corpus_tokenizer


@pytest.fixture
def built(shards):
    return shards, ShardManifest.load(shards)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_bytes_do_not_depend_on_the_number_of_processes(built, corpus, tokenizer, tmp_path):
    build_shards(corpus, tmp_path / "two", 2, tokenizer)
    assert contents(tmp_path / "two") == contents(built[0])


def test_nothing_is_left_beside_the_shards(built):
    assert [path.name for path in built[0].parent.iterdir()] == [built[0].name]
    assert sorted(path.name for path in built[0].iterdir()) == [
        "index.npy",
        "manifest.json",
        "shard-000000.tar",
        "shard-000001.tar",
        "shard-000002.tar",
        "tokenizer",
    ]


def test_plain_webdataset_reads_the_shards(built, samples):
    tars = sorted(str(path) for path in built[0].glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
    read = list(dataset)
    assert [item["__key__"] for item in read] == [f"{i:09d}" for i in range(len(samples))]
    assert [Sample.from_bytes(item["json"]) for item in read] == samples


def test_tars_carry_no_time(built):
    with tarfile.open(built[0] / "shard-000000.tar") as tar:
        assert {member.mtime for member in tar} == {0}


def with_data(corpus, **settings):
    return replace(corpus, data=replace(corpus.data, **settings))


def needles(corpus, samples):
    return replace(corpus, stages=(CorpusStage(StageData(weights={"niah": 1.0}), samples=samples),))


def test_a_folder_in_use_is_refused_and_kept(built, corpus, tokenizer, tmp_path):
    before = contents(built[0])
    with pytest.raises(DataError, match="not empty"):
        build_shards(corpus, built[0], 1, tokenizer)
    assert contents(built[0]) == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="not empty"):
        build_shards(corpus, tmp_path / "file", 1, tokenizer)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_that_fails_leaves_nothing(corpus, tokenizer, tmp_path, workers):
    niah = replace(corpus.data.niah, document_tokens=20)
    too_short = with_data(needles(corpus, 24), niah=niah)
    with pytest.raises(DataError, match=r"takes .* tokens"):
        build_shards(too_short, tmp_path / "out", workers, tokenizer)
    assert list(tmp_path.iterdir()) == []


class Stopped(Exception):
    """As if the machine had gone down."""


def test_an_interrupted_build_is_taken_up(built, corpus, tokenizer, tmp_path, monkeypatch):
    real, asked = SampleBuilder.build, []

    def build(self, index):
        asked.append(index)
        if len(asked) == 16:
            raise Stopped
        return real(self, index)

    monkeypatch.setattr(SampleBuilder, "build", build)
    with pytest.raises(Stopped):
        build_shards(corpus, tmp_path / "out", 1, tokenizer)
    assert not (tmp_path / "out").exists()
    build_shards(corpus, tmp_path / "out", 1, tokenizer)
    assert asked[16:] == list(range(10, 24)), "the first shard was kept"
    assert contents(tmp_path / "out") == contents(built[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


class Deadly(SampleBuilder):
    """Its process is killed at the second shard, as by the kernel for want of memory."""

    def build(self, index):
        if index == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().build(index)


def test_a_process_that_is_killed_is_said_and_what_is_done_stays(
    built, corpus, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(build_module, "SampleBuilder", Deadly)
    with pytest.raises(DataError, match=r"a process that builds shards died"):
        build_shards(corpus, tmp_path / "out", 2, tokenizer)
    assert (tmp_path / ".out.partial").is_dir() and not (tmp_path / "out").exists()
    monkeypatch.undo()
    build_shards(corpus, tmp_path / "out", 2, tokenizer)
    assert contents(tmp_path / "out") == contents(built[0])


def test_what_another_corpus_left_is_not_taken_up(built, corpus, tokenizer, tmp_path, monkeypatch):
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    for name in ("shard-000000.tar", "shard-000000.npz", "build.json"):
        (partial / name).write_text("{}")
    build_shards(corpus, tmp_path / "out", 1, tokenizer)
    assert contents(tmp_path / "out") == contents(built[0])


def test_two_builds_of_one_folder_are_refused(corpus, tokenizer, tmp_path):
    (tmp_path / ".out.partial").mkdir()
    with (
        whole_build(tmp_path / ".out.partial"),
        pytest.raises(DataError, match=r"all shards of .*out.partial is being built by process"),
    ):
        build_shards(corpus, tmp_path / "out", 1, tokenizer)


def test_a_tokenizer_is_trained_when_none_is_given(corpus, tmp_path):
    small = needles(corpus, 3)
    manifest = build_shards(small, tmp_path / "out", 1)
    assert manifest.tokenizer == corpus_tokenizer(small).fingerprint


def test_shards_are_exchanged_for_longer_ones(built, corpus, tokenizer, tmp_path, monkeypatch):
    """By their tokenizer, and at a death between the two names by the next build."""
    longer = replace(corpus, stages=(*corpus.stages, corpus.stages[-1]))
    build_shards(longer, tmp_path / "expected", 1, tokenizer)
    out = shutil.copytree(built[0], tmp_path / "out")
    renamed = []

    def dies(source, target):
        if source.name == ".out.next":
            raise KeyboardInterrupt
        renamed.append(source.name)
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(build_module.files, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            build_module.rebuild_shards(longer, out, 1)
    assert renamed[-1] == "out" and not out.exists()
    build_module.finish_exchange(out)
    assert contents(out) == contents(tmp_path / "expected")
    build_module.rebuild_shards(corpus, out, 1)
    assert contents(out) == contents(built[0])
    assert not list(tmp_path.glob(".out*"))
