"""Checkpoint folders: whole or absent, damage named, the last good one taken."""

import pytest

from msa_train import checkpoint_folders
from msa_train.errors import CheckpointError


def make(folder, step, text="weights"):
    partial = folder / checkpoint_folders.partial_name(step)
    (partial / "inner").mkdir(parents=True)
    (partial / "a.bin").write_text(text)
    (partial / "inner" / "b.bin").write_text(text * 2)
    return checkpoint_folders.seal(partial, step, checkpoint_folders.digests(partial))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {"damaged": flip, "bytes, not": cut, "missing": lambda path: path.unlink()}


def test_a_folder_appears_when_it_is_sealed(tmp_path):
    (tmp_path / checkpoint_folders.partial_name(5)).mkdir()
    assert list(checkpoint_folders.newest_first(tmp_path)) == []
    assert (
        checkpoint_folders.newest_good(tmp_path) is None
        and checkpoint_folders.last_step(tmp_path) == 0
    )
    target = make(tmp_path, 10)
    checkpoint_folders.check(target)
    assert checkpoint_folders.newest_good(tmp_path) == target
    assert checkpoint_folders.last_step(tmp_path) == 10


def test_ranks_share_the_digests(tmp_path):
    target = make(tmp_path, 1)
    shares = [checkpoint_folders.digests(target, part, 3) for part in range(3)]
    assert sum(len(share) for share in shares) == 2
    assert shares[0] | shares[1] | shares[2] == checkpoint_folders.digests(target)


@pytest.mark.parametrize("file", ["a.bin", "inner/b.bin"])
@pytest.mark.parametrize("said", DAMAGE)
def test_damage_is_named_and_the_last_good_one_taken(tmp_path, capsys, said, file):
    good, bad = make(tmp_path, 1), make(tmp_path, 2)
    DAMAGE[said](bad / file)
    with pytest.raises(CheckpointError, match=f"{file}.*{said}"):
        checkpoint_folders.check(bad)
    assert checkpoint_folders.newest_good(tmp_path) == good
    assert str(bad / file) in capsys.readouterr().err


def test_with_all_damaged_nothing_is_taken(tmp_path):
    (make(tmp_path, 1) / "a.bin").write_text("")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        checkpoint_folders.newest_good(tmp_path)


def test_a_broken_seal_is_refused(tmp_path):
    target = make(tmp_path, 1)
    (target / checkpoint_folders.SEAL).write_text("{")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        checkpoint_folders.check(target)


def test_the_same_step_again_replaces_a_damaged_one(tmp_path):
    (make(tmp_path, 3) / "a.bin").unlink()
    make(tmp_path, 3, "again")
    assert (checkpoint_folders.newest_good(tmp_path) / "a.bin").read_text() == "again"


def test_old_ones_and_leftovers_go(tmp_path):
    for step in (1, 2, 10):
        make(tmp_path, step)
    (tmp_path / checkpoint_folders.partial_name(11)).mkdir()
    checkpoint_folders.forget_old(tmp_path, keep=2)
    assert [p.name for p in checkpoint_folders.newest_first(tmp_path)] == [
        "step-000000010",
        "step-000000002",
    ]
    checkpoint_folders.clear_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"step-000000010", "step-000000002"}
