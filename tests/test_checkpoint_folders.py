"""Checkpoint folders: whole or absent, damage named, the last good one taken."""

import json

import pytest

from msa_train import checkpoint_folders
from msa_train.errors import CheckpointError


def make(folder, step, text="weights", flaw=None):
    partial = folder / checkpoint_folders.partial_name(step)
    (partial / "inner").mkdir(parents=True)
    (partial / "a.bin").write_text(text)
    (partial / "inner" / "b.bin").write_text(text * 2)
    return checkpoint_folders.seal(partial, step, checkpoint_folders.digests(partial), flaw)


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


def test_leftovers_go(tmp_path):
    make(tmp_path, 2)
    (tmp_path / checkpoint_folders.partial_name(11)).mkdir()
    checkpoint_folders.clear_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"step-000000002"}


def test_good_is_what_is_whole_and_has_no_flaw(tmp_path, capsys):
    good = make(tmp_path, 1)
    make(tmp_path, 2, flaw=checkpoint_folders.NOT_FINITE)
    make(tmp_path, 3, flaw=checkpoint_folders.SKIPPED)
    flip(make(tmp_path, 4) / "a.bin")
    assert checkpoint_folders.newest_good(tmp_path) == good
    said = capsys.readouterr().err
    assert "3: the step before it was skipped" in said and "2: its weights are not finite" in said
    assert checkpoint_folders.last_step(tmp_path) == 3, "the newest undamaged one"


def test_a_run_that_only_skipped_goes_on_and_broken_weights_never_do(tmp_path):
    make(tmp_path, 3, flaw=checkpoint_folders.NOT_FINITE)
    with pytest.raises(CheckpointError, match="whole and good"):
        checkpoint_folders.newest_good(tmp_path)
    skipped = make(tmp_path, 2, flaw=checkpoint_folders.SKIPPED)
    assert checkpoint_folders.newest_good(tmp_path) == skipped


def test_folders_without_a_word_of_flaws_are_good(tmp_path):
    target = make(tmp_path, 1)
    seal = json.loads((target / checkpoint_folders.SEAL).read_text())
    del seal["flaw"]
    (target / checkpoint_folders.SEAL).write_text(json.dumps(seal))
    assert checkpoint_folders.newest_good(tmp_path) == target
