from collections import Counter
from dataclasses import replace
from shutil import copyfile, copytree

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.shards.loader import ShardLoader
from data_pipeline.shards.manifest import ShardManifest
from data_pipeline.shards.reader import ShardReader

SAMPLES = 24  # shards of 10, 10 and 4; stages of 6, 6 and 12


def damaged(shards, tmp_path, change):
    copy = copytree(shards, tmp_path / "copy")
    change(copy / "shard-000001.tar")
    return copy


def flip(path):
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-15_000])


def empty(path):
    path.write_bytes(b"")


def unlink(path):
    path.unlink()


def test_a_damaged_sample_is_found_and_named(shards, tmp_path):
    reader, found = ShardReader(damaged(shards, tmp_path, flip)), {}
    for i in range(SAMPLES):
        try:
            reader[i]
        except DataError as error:
            found[i] = str(error)
    assert list(found) == [10]
    assert "sample 10 of" in found[10] and "shard-000001.tar is damaged" in found[10]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut, r"shard-000001.tar has \d+ bytes, not \d+"),
        (empty, "shard-000001.tar is empty"),
        (unlink, "shard-000001.tar is missing"),
    ],
)
def test_a_shard_that_is_not_whole_is_named_before_anything_is_read(
    shards, tmp_path, change, words
):
    with pytest.raises(DataError, match=words):
        ShardReader(damaged(shards, tmp_path, change))


def test_a_shard_that_shrinks_while_it_is_read_is_named(shards, tmp_path):
    folder = copytree(shards, tmp_path / "copy")
    reader = ShardReader(folder)
    cut(folder / "shard-000001.tar")
    with pytest.raises(DataError, match=r"sample 19 of .*shard-000001.tar is cut short"):
        reader[19]
    unlink(folder / "shard-000002.tar")
    with pytest.raises(DataError, match=r"shard-000002.tar cannot be read \(No such file"):
        reader[23]


@pytest.mark.parametrize(("change", "lost"), [(flip, 1), (cut, None), (unlink, 10)])
def test_what_is_damaged_is_skipped_and_counted_when_asked(
    shards, samples, tmp_path, capsys, change, lost
):
    """Others of the same stage stand in, and two ranks still read equally many."""
    folder = damaged(shards, tmp_path, change)
    reader = ShardReader(folder, skip_damaged=True)
    intact = ShardReader(shards)
    read = [reader[i] for i in range(SAMPLES)]
    for i, sample in enumerate(read):
        own = [s for s, stage in zip(samples, intact.index["stage"], strict=True)
               if stage == intact.index["stage"][i]]  # fmt: skip
        assert sample in own
    replaced = sum(a != b for a, b in zip(read, samples, strict=True))
    assert replaced and (lost is None or replaced == lost) and reader.skipped >= replaced
    if lost is not None:
        assert reader.skipped == lost, "samples, not attempts"
    assert "shard-000001.tar" in capsys.readouterr().err
    ranks = [
        ShardLoader(ShardReader(folder, skip_damaged=True), rank=r, world_size=2) for r in (0, 1)
    ]
    assert [len(list(rank)) for rank in ranks] == [12, 12]
    for rank in ranks:
        rank.close()


class Watched(ShardReader):
    """Remembers which samples were read."""

    def _read(self, sample):
        found = super()._read(sample)
        self.read.append(sample)
        return found


def test_what_stands_in_for_a_lost_shard_is_spread_over_its_stage(shards, tmp_path, capsys):
    """Three shards of 256 samples, of which the middle one is lost."""
    folder, each = copytree(shards, tmp_path / "copy"), 256
    row = ShardReader(shards).index[0]
    index = np.repeat(row, 3 * each)
    index["shard"] = np.arange(3 * each) // each
    np.save(folder / "index.npy", index)
    for shard in (1, 2):
        copyfile(folder / "shard-000000.tar", folder / f"shard-{shard:06d}.tar")
    manifest = ShardManifest.load(folder)
    sizes, stages = manifest.shards[:1] * 3, (replace(manifest.stages[0], samples=3 * each),)
    replace(manifest, shards=sizes, stages=stages, samples=3 * each).save(folder)
    unlink(folder / "shard-000001.tar")
    reader = Watched(folder, skip_damaged=True)
    reader.read = []
    for sample in range(3 * each):
        reader[sample]
    assert reader.skipped == each and len(reader.read) == 3 * each
    times = Counter(reader.read)
    assert max(times.values()) <= 6 and sum(count > 1 for count in times.values()) > each / 2
    assert capsys.readouterr().err.count("\n") == 1, "a lost shard is one line"
    again = Watched(folder, skip_damaged=True)
    again.read = []
    again[300]
    assert again.read == reader.read[300:301], "the same one stands in, whenever it is read"


def test_a_stage_without_a_readable_sample_is_an_error(shards, tmp_path):
    folder = copytree(shards, tmp_path / "copy")
    unlink(folder / "shard-000000.tar")
    with pytest.raises(DataError, match=r"shard-000000.tar cannot be read"):
        ShardReader(folder, skip_damaged=True)[3]


def test_shards_of_another_tokenizer_are_refused(shards, tmp_path):
    from data_pipeline.tokenizer.sentencepiece import train_sentencepiece

    copy = copytree(shards, tmp_path / "copy")
    train_sentencepiece([f"word {i}" for i in range(500)], 280).save(copy / "tokenizer")
    with pytest.raises(DataError, match="not the tokenizer"):
        ShardReader(copy).tokenizer()
