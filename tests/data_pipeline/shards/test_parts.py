"""A shard set built in parts is that of one process, byte for byte."""

import socket
import threading

import pytest

from data_pipeline.errors import DataError
from data_pipeline.settings import CorpusStage, StageData
from data_pipeline.settings import TrainingCorpus as Corpus
from data_pipeline.shards import build as build_module
from data_pipeline.shards import parts
from data_pipeline.shards.build import build_part, build_shards
from data_pipeline.shards.parts import BuildPart
from tests.data_pipeline.shards.test_build import contents

HOST = socket.gethostname()


def test_a_part_is_given_as_one_of_several():
    assert BuildPart.of("3/16") == BuildPart(3, 16) and list(BuildPart(2, 3).shards(8)) == [1, 4, 7]
    assert sorted(i for k in (1, 2, 3) for i in BuildPart(k, 3).shards(8)) == list(range(8))
    for text in ("0/2", "3/2", "3", "a/b", "1/2/3"):
        with pytest.raises(DataError, match=r"--part is .*: give K/N"):
            BuildPart.of(text)


def test_parts_are_put_together_as_one_process_builds(shards, corpus, tmp_path, monkeypatch):
    """One of them died, and is named until it was run again."""
    out, count = tmp_path / "run" / "shards", 2
    assert build_part(corpus, out, BuildPart(2, count)) == 1
    built, real = [], build_module._build_shard

    def dies(folder, builder, shard):
        if built:
            raise KeyboardInterrupt
        built.append(shard)
        return real(folder, builder, shard)

    monkeypatch.setattr(build_module, "_build_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        build_part(corpus, out, BuildPart(1, count))
    with pytest.raises(DataError, match=rf"part 1/2 \(1 shards, begun on {HOST}\) of 2 not built"):
        build_shards(corpus, out, seal=True)
    assert not out.exists()
    monkeypatch.setattr(build_module, "_build_shard", real)
    assert build_part(corpus, out, BuildPart(1, count)) == 2
    build_shards(corpus, out, seal=True)
    assert contents(out) == contents(shards)
    assert sorted(path.name for path in out.parent.iterdir()) == ["shards"]


def test_what_others_build_is_left_alone(corpus, tmp_path):
    out, folder = tmp_path / "shards", tmp_path / ".shards.partial"
    with pytest.raises(DataError, match=r"no part of .*shards was built: msa data build --part"):
        build_shards(corpus, out, seal=True)
    assert not folder.exists()
    other = Corpus(corpus.data, (CorpusStage(StageData(0), samples=4),))
    build_part(corpus, out, BuildPart(3, 3))
    before = contents(folder)
    with pytest.raises(DataError, match=r"part 1/3 .* never begun\), part 2/3"):
        build_shards(corpus, out, seal=True)
    with pytest.raises(DataError, match="holds an unfinished build of other settings: remove it"):
        build_part(other, out, BuildPart(1, 3))
    with pytest.raises(DataError, match="holds an unfinished build of other settings: remove it"):
        build_shards(other, out)
    with BuildPart(1, 3).held(folder):
        with pytest.raises(DataError, match=rf"part 1/3 .* is being built by process .* {HOST}"):
            build_part(corpus, out, BuildPart(1, 3))
        with pytest.raises(DataError, match=f"part 1/3 is being built on {HOST}"):
            build_shards(corpus, out)
        with pytest.raises(DataError, match="part 1/3, which is not one of 4, is being built on"):
            build_part(corpus, out, BuildPart(1, 4))
    after = contents(folder)
    assert {name: after[name] for name in before} == before


def test_one_part_prepares_and_others_wait_for_it(tmp_path):
    inside, seen = threading.Event(), []

    def late():
        inside.wait(10)
        with parts.preparing(tmp_path, pause_s=0.01):
            seen.append("late")

    thread = threading.Thread(target=late)
    thread.start()
    with parts.preparing(tmp_path):
        inside.set()
        thread.join(0.1)
        seen.append("first")
    thread.join(10)
    assert seen == ["first", "late"]


def test_what_prepares_for_too_long_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PREPARING_S", 0.0)
    with (
        parts.preparing(tmp_path),
        pytest.raises(DataError, match=rf"waited 0 s for process .* on {HOST}"),
        parts.preparing(tmp_path, pause_s=0.01),
    ):
        pass
