"""A shard set built in parts is that of one process, byte for byte."""

import socket
import threading

import pytest

from data_pipeline import leases
from data_pipeline.errors import DataError
from data_pipeline.processes import InterruptedBuild
from data_pipeline.settings import CorpusStage, StageData
from data_pipeline.settings import TrainingCorpus as Corpus
from data_pipeline.shards import build as build_module
from data_pipeline.shards import parts
from data_pipeline.shards.build import build_part, build_shards
from data_pipeline.shards.parts import BuildPart
from tests.data_pipeline.shards.test_build import contents, needles

HOST = socket.gethostname()


@pytest.fixture
def quick(corpus, tokenizer, monkeypatch):
    """What takes no time: needles alone, by a tokenizer that is there already."""
    monkeypatch.setattr(build_module, "corpus_tokenizer", lambda corpus: tokenizer)
    return needles(corpus, 24)


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


def test_what_others_build_is_left_alone(quick, tmp_path):
    corpus = quick
    out, folder = tmp_path / "shards", tmp_path / ".shards.partial"
    with pytest.raises(DataError, match=r"no part of .*shards was built: msa data build --part"):
        build_shards(corpus, out, seal=True)
    assert not folder.exists()
    other = Corpus(corpus.data, (CorpusStage(StageData(0), samples=4),))
    build_part(corpus, out, BuildPart(3, 3))
    before = {name: data for name, data in contents(folder).items() if "lease" not in name}
    with pytest.raises(DataError, match=r"part 1/3 .* never begun\), part 2/3"):
        build_shards(corpus, out, seal=True)
    with pytest.raises(DataError, match="holds an unfinished build of other settings: remove it"):
        build_part(other, out, BuildPart(1, 3))
    with pytest.raises(DataError, match="holds an unfinished build of other settings: remove it"):
        build_shards(other, out)
    with BuildPart(1, 3).held(folder):
        with pytest.raises(DataError, match=rf"part 1/3 .* is being built by process .* {HOST}"):
            build_part(corpus, out, BuildPart(1, 3))
        with pytest.raises(DataError, match=rf"is being built by process .* on {HOST} \(part 1/3"):
            build_shards(corpus, out)
        with pytest.raises(DataError, match=r"part 1/4 .* beside process .* \(part 1/3, "):
            build_part(corpus, out, BuildPart(1, 4))
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    with (
        parts.whole_build(folder),
        pytest.raises(DataError, match=r"part 1/3 .* beside process .* \(all shards, "),
    ):
        build_part(corpus, out, BuildPart(1, 3))


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


def test_a_part_whose_machine_died_is_taken_over(quick, tmp_path, monkeypatch, capfd):
    """It stood still: what it had is kept, and when it goes on, it ends."""
    out, taken = tmp_path / "run" / "shards", []
    real = build_module._build_shard

    def stands_still(folder, builder, shard):
        built = real(folder, builder, shard)
        if not taken:
            taken.append(shard)
            (folder / "partial-0badc0de-shard-000002.tar").write_bytes(b"half")
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr(leases, "machine", lambda: "another")
                elsewhere.setattr(leases, "LEASE_S", 0.3)
                assert build_part(quick, out, BuildPart(1, 2)) == 2
        return built

    monkeypatch.setattr(build_module, "_build_shard", stands_still)
    monkeypatch.setattr(leases, "BEAT_S", 60.0)  # the first of both gives no sign of life
    with pytest.raises(InterruptedBuild, match=r"part 1/2 .* was taken over by process .* on"):
        build_part(quick, out, BuildPart(1, 2))
    said = capfd.readouterr().err
    assert "part 1/2: taken over from process" in said and taken == [0]
    build_part(quick, out, BuildPart(2, 2))
    build_shards(quick, out, seal=True)
    build_shards(quick, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")
