"""Files and folders appear whole or not at all, at whatever step it fails or dies."""

import contextlib
import errno
import hashlib
import os
import re

import pytest

from data_pipeline import files
from tests.faults.bank_changes import KILLED, Fault, die, in_child
from tests.house.sources import ROOT, sources


def replace(path):
    files.replace_file(path / "kept", "new " * 1000)


def write(path):
    with files.whole(path / "kept") as partial, partial.open("w") as file:
        file.write("new " * 1000)


def make(path):
    with files.whole(path / "made") as partial:
        partial.mkdir()
        (partial / "a.txt").write_text("a")
        files.make_folder(partial / "inner")
        (partial / "inner" / "b.txt").write_text("b")


BEFORE = {"kept": b"old"}
AFTER = {
    replace: {"kept": b"new " * 1000},
    write: {"kept": b"new " * 1000},
    make: BEFORE | {"made/a.txt": b"a", "made/inner/b.txt": b"b"},
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "kept").write_bytes(b"old")
    return tmp_path / "in"


@contextlib.contextmanager
def patched(fault):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", fault)
        yield fault


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def steps(folder, work):
    """How many steps `work` takes."""
    with patched(Fault(0, None)) as fault:
        work(folder)
    assert fault.calls >= 3
    return fault.calls


@pytest.mark.parametrize("work", AFTER)
def test_what_was_written_is_there_and_nothing_else(folder, work):
    work(folder)
    assert contents(folder) == AFTER[work]
    assert (folder / "kept").stat().st_mode & 0o444 == 0o444, "others may read it"


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("work", AFTER)
def test_an_error_at_every_step_leaves_the_old_or_the_new(tmp_path, folder, work, lasting):
    for at in range(1, steps(folder, work) + 1):
        path = tmp_path / f"again-{at}"
        path.mkdir()
        (path / "kept").write_bytes(b"old")
        with patched(Fault(at, full, lasting)), pytest.raises(OSError, match="No space left"):
            work(path)
        found = contents(path)
        if lasting:  # then what was written aside cannot be removed either
            found = {name: data for name, data in found.items() if not name.startswith(".")}
        assert found in (BEFORE, AFTER[work])
        if not lasting:
            assert not [each for each in path.iterdir() if each.name.startswith(".")]


@pytest.mark.parametrize("work", AFTER)
def test_death_at_every_step_leaves_the_old_or_the_new(tmp_path, folder, work):
    for at in range(1, steps(folder, work) + 1):
        path = tmp_path / f"again-{at}"
        path.mkdir()
        (path / "kept").write_bytes(b"old")

        def dying(path=path, at=at):
            with patched(Fault(at, die)):
                work(path)

        assert in_child(dying) == KILLED
        found = {name: data for name, data in contents(path).items() if name[0] != "."}
        assert found in (BEFORE, AFTER[work])
        if found == BEFORE:  # what a dead process left is in nobody's way
            work(path)
        assert AFTER[work].items() <= contents(path).items()


def test_bytes_and_names_are_on_the_disk_before_and_after_the_rename(folder):
    """Every file and folder is synced before it takes its name, and the name after that."""
    synced, order = [], []

    class Watched:
        def __getattr__(self, name):
            return getattr(os, name)

        def fsync(self, descriptor):
            synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            os.fsync(descriptor)

        def rename(self, source, target):
            order.append(list(synced))
            os.rename(source, target)

    with patched(Watched()):
        make(folder)
    (before,) = order
    names = {os.path.relpath(path, folder).partition("/")[2] for path in before}
    assert {"", "a.txt", "inner", "inner/b.txt"} <= names
    assert synced[len(before) :] == [str(folder)]


def test_a_block_that_fails_leaves_nothing(folder):
    with pytest.raises(KeyboardInterrupt), files.whole(folder / "made") as partial:
        partial.mkdir()
        (partial / "half").write_text("half")
        raise KeyboardInterrupt
    assert contents(folder) == BEFORE


def test_two_writers_at_once_do_not_meet(folder):
    with files.whole(folder / "a.txt") as one, files.whole(folder / "a.txt") as other:
        assert one != other and one.suffix == other.suffix == ".txt"
        one.write_text("one")
        other.write_text("other")
    assert contents(folder) == BEFORE | {"a.txt": b"one"}


def test_a_folder_that_holds_something_is_not_replaced(folder):
    make(folder)
    with pytest.raises(OSError, match="not empty"):
        make(folder)
    assert contents(folder) == AFTER[make]


def test_a_new_file_knows_its_bytes_and_digest_and_is_new(folder):
    with files.NewFile(folder / "fresh") as file:
        file.write(b"ab")
        file.write(memoryview(b"cd"))
    assert (file.bytes, file.sha256) == (4, hashlib.sha256(b"abcd").hexdigest())
    with pytest.raises(FileExistsError):
        files.NewFile(folder / "fresh")


def test_removing_a_link_leaves_what_it_leads_to(folder):
    (folder / "links").mkdir()
    (folder / "links" / "to").symlink_to(folder / "kept")
    (folder / "links" / "folder").symlink_to(folder, target_is_directory=True)
    files.remove(folder / "links")
    assert contents(folder) == BEFORE


BY_HAND = re.compile(
    r"os\.(replace|rename|fsync)|mkdtemp|mkstemp|NamedTemporaryFile|shutil\.move|"
    r"(?<!partial)\.(write_text|write_bytes)\("
)
ELSEWHERE = {
    "data_pipeline/files.py": "the mechanism itself",
    "data_pipeline/leases.py": "a count, overwritten where it stands for other machines to see",
    "msa_train/memory/ranks/worker_group.py": "sockets, for as long as the processes live",
    "msa_train/training/swap_files.py": "the optimizer's states, for as long as the process lives",
}


def test_nothing_is_written_or_renamed_by_hand():
    """What a user keeps goes through `whole` and `replace_file`; bench makes files clean to drop
    them from the page cache."""
    found = {
        f"{path}: {line.strip()}"
        for path in map(str, sources())
        if path not in ELSEWHERE and not path.startswith("msa_train/bench/")
        for line in (ROOT / path).read_text().splitlines()
        if BY_HAND.search(line)
    }
    assert not found


def test_what_the_system_refuses_names_the_file(tmp_path):
    def full(error):
        with pytest.raises(OSError) as raised, files.whole(tmp_path / "out") as partial:
            partial.mkdir()
            raise error(partial)
        return raised.value.filename

    assert full(lambda _: OSError(errno.ENOSPC, "full")) == str(tmp_path / "out")
    assert full(lambda partial: OSError(errno.EROFS, "", partial)) == str(tmp_path / "out")
    assert full(lambda _: OSError(errno.ENOENT, "gone", "other")) == "other"
