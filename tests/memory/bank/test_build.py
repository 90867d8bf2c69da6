"""A build in blocks: the same bank whatever interrupts it and whoever encodes."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

from msa_train.errors import BankError
from msa_train.memory.bank.build import add_documents
from msa_train.memory.bank.encode import BlockEncoder, BlockSize
from msa_train.memory.bank.lock import BusyError
from msa_train.memory.bank.manifest import building_name
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.verify import verify_bank
from msa_train.memory.bank.writer import BankWriter, UnknownDocumentError
from tests.faults.bank_changes import texts
from tests.memory.building import (
    Stopped,
    build,
    contents,
    document,
    tiny_bank,
    until,
)
from tests.memory.tiny import FINGERPRINT, tiny_documents, tiny_model, tiny_tokenizer

COUNT = 14  # five blocks, the last of two documents


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "bank"
    build(path, COUNT)
    return contents(path)


@pytest.fixture
def encoded(monkeypatch):
    """First documents of the blocks that are encoded."""
    seen, segment = [], BlockEncoder.segment

    def noted(self, block, target, told):
        seen.append(block[0].number)
        return segment(self, block, target, told)

    monkeypatch.setattr(BlockEncoder, "segment", noted)
    return seen


def named(id, number, text=None):
    return replace(document(number, text), id=id)


def put(path, documents, update=False):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    return add_documents(path, model, tokenizer, documents, FINGERPRINT, update)


def stopped(path, at):
    with pytest.raises(Stopped):
        build(path, until(at, COUNT))


def test_segments_are_blocks(whole):
    assert [(entry.first, entry.last) for entry in whole[0]] == [
        (0, 2), (3, 5), (6, 8), (9, 11), (12, 13),
    ]  # fmt: skip
    assert whole[1:] == (COUNT, 1)


@pytest.mark.parametrize("at", [1, 4, 7, 13])
def test_a_stopped_build_goes_on_where_it_was(tmp_path, capsys, encoded, whole, at):
    stopped(tmp_path / "bank", at)
    kept = max(0, at - 1) // 3 * 3  # a block is known to be complete when the next one begins
    left = building_name(tmp_path / "bank")
    assert left.exists() == bool(kept)
    if kept:
        assert f"{kept} encoded documents are kept in {left}" in capsys.readouterr().err
        assert not verify_bank(left)["problems"] and not verify_bank(left)["orphans"]
    encoded.clear()
    build(tmp_path / "bank", COUNT)
    assert encoded == list(range(kept, COUNT, 3))
    assert contents(tmp_path / "bank") == whole
    assert not left.exists() and not verify_bank(tmp_path / "bank")["orphans"]


def test_ctrl_c_keeps_what_is_finished(tmp_path, whole):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "bank", until(8, COUNT, interrupt))
    assert len(BankSnapshot.open(building_name(tmp_path / "bank"))) == 6
    build(tmp_path / "bank", COUNT)
    assert contents(tmp_path / "bank") == whole


@pytest.mark.parametrize(
    "changed",
    [{"text": "Another."}, {"id": "x"}, {"title": "t"}, {"metadata": {"n": 4.0}}, {"part": 1}],
    ids=lambda changed: next(iter(changed)),
)
def test_blocks_whose_documents_changed_are_encoded_anew(tmp_path, capsys, encoded, changed):
    stopped(tmp_path / "bank", 10)
    encoded.clear()
    given = [document(number) for number in range(COUNT)]
    given[4] = replace(given[4], **changed)
    build(tmp_path / "bank", given)
    assert encoded == [3, 9, 12]
    assert re.search(r"000001-000000000003 holds other documents: enc", capsys.readouterr().err)
    build(tmp_path / "other", given)
    assert contents(tmp_path / "bank") == contents(tmp_path / "other")


def test_later_timestamps_are_no_other_documents(tmp_path, encoded):
    stopped(tmp_path / "bank", 10)
    encoded.clear()
    build(tmp_path / "bank", [replace(document(number), added=9) for number in range(COUNT)])
    assert encoded == [9, 12]
    assert [d.added for d in BankSnapshot.open(tmp_path / "bank")] == [7] * 9 + [9] * 5


def test_a_shorter_or_shifted_corpus_leaves_nothing_of_the_old_one(tmp_path, encoded):
    stopped(tmp_path / "bank", 13)
    build(tmp_path / "bank", 7)
    assert len(BankSnapshot.open(tmp_path / "bank", FINGERPRINT)) == 7
    stopped(tmp_path / "shifted", 13)
    build(tmp_path / "shifted", COUNT, size=BlockSize(documents=4))
    build(tmp_path / "other", COUNT, size=BlockSize(documents=4))
    assert contents(tmp_path / "shifted") == contents(tmp_path / "other")
    assert not verify_bank(tmp_path / "shifted")["orphans"]


def test_blocks_that_overlap_after_another_interruption_are_no_obstacle(tmp_path, whole):
    stopped(tmp_path / "bank", 13)
    with pytest.raises(Stopped):
        build(tmp_path / "bank", until(9, COUNT), size=BlockSize(documents=4))
    build(tmp_path / "bank", COUNT)
    assert contents(tmp_path / "bank") == whole


def test_damaged_blocks_are_encoded_anew(tmp_path, capsys, encoded, whole):
    stopped(tmp_path / "bank", 13)
    left = building_name(tmp_path / "bank")
    file = left / "segments" / "000001-000000000006" / "layer-2.k"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    encoded.clear()
    build(tmp_path / "bank", COUNT)
    assert encoded == [6, 12] and "layer-2.k was changed" in capsys.readouterr().err
    assert contents(tmp_path / "bank") == whole
    stopped(tmp_path / "cut", 13)
    file = building_name(tmp_path / "cut") / "segments" / "000001-000000000006" / "layer-2.k"
    os.truncate(file, 3)
    build(tmp_path / "cut", COUNT)
    assert re.search(r"layer-2.k has 3 bytes.*; building anew", capsys.readouterr().err)
    assert contents(tmp_path / "cut") == whole


@pytest.mark.parametrize(
    ("settings", "said"), [({"dtype": "float16"}, "another form"), ({}, "built by another model")]
)
def test_another_form_is_built_anew(tmp_path, capsys, encoded, settings, said, monkeypatch):
    stopped(tmp_path / "bank", 10)
    encoded.clear()
    if not settings:
        other = FINGERPRINT | {"model": "c" * 64}
        monkeypatch.setattr("tests.memory.building.FINGERPRINT", other)
    build(tmp_path / "bank", COUNT, **settings)
    assert encoded == [0, 3, 6, 9, 12]
    assert re.search(rf"{said}.*; building anew", capsys.readouterr().err)


def test_a_second_build_is_refused_and_told_of_the_first(tmp_path):
    def second():
        with pytest.raises(BusyError, match=f"being written by process {os.getpid()} .*build"):
            build(tmp_path / "bank")
        raise Stopped

    with pytest.raises(Stopped):
        build(tmp_path / "bank", until(5, COUNT, second))
    assert len(BankSnapshot.open(building_name(tmp_path / "bank"))) == 3


def test_an_existing_target_is_left_alone(tmp_path):
    (tmp_path / "bank").mkdir()
    with pytest.raises(BankError, match="exists"):
        tiny_bank(tmp_path / "bank")
    assert not any((tmp_path / "bank").iterdir())


def test_a_failing_corpus_leaves_nothing(tmp_path):
    def documents():
        yield from tiny_documents()[:4]
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        tiny_bank(tmp_path / "bank", documents())
    assert not list(tmp_path.iterdir())


def test_a_killed_build_leaves_no_bank_but_says_what_it_left(tmp_path, capfd):
    code = """
        import os, signal
        from tests.memory.building import tiny_bank
        from tests.memory.tiny import tiny_documents
        def documents():
            yield from tiny_documents()[:5]
            os.kill(os.getpid(), signal.SIGKILL)
        tiny_bank({path!r}, documents())
    """
    code = textwrap.dedent(code).format(path=str(tmp_path / "bank"))
    done = subprocess.run([sys.executable, "-c", code], cwd=os.getcwd(), capture_output=True)
    assert done.returncode == -signal.SIGKILL
    left = tmp_path / ".bank.building"
    assert left.is_dir()
    with pytest.raises(BankError, match=r"its build is not finished .*\.bank\.building"):
        BankSnapshot.open(tmp_path / "bank")
    tiny_bank(tmp_path / "bank")
    err = capfd.readouterr().err
    assert "process" in err and "did not finish" in err
    assert len(BankSnapshot.open(tmp_path / "bank", FINGERPRINT)) == 7
    assert not left.exists()


def test_ids_are_given_once(bank):
    put(bank, [named("fresh", 0, "new one")])
    assert BankSnapshot.open(bank).numbers_of("fresh") == [14]
    with pytest.raises(BankError, match=r"'fresh' is in .*: update it instead"):
        put(bank, [named("fresh", 0)])
    with pytest.raises(BankError, match=r"'other' is not in .*: add it instead"):
        put(bank, [named("other", 0)], update=True)
    with pytest.raises(BankError, match="'twice' comes twice"):
        put(bank, [named("twice", 0)] * 2)
    put(bank, [named("fresh", 0, "newer")], update=True)
    assert BankSnapshot.open(bank).numbers_of("fresh") == [15]
    assert texts(bank)[15] == "newer" and 14 not in texts(bank)


@pytest.mark.parametrize("parts", [(0, 0), (1, 1), (1, 0), (0, 1), (1, 2, 1), (1, 2, 0)])
def test_an_id_comes_once_or_in_parts_that_ascend(bank, tmp_path, parts):
    given = [replace(named("twice", n), part=part) for n, part in enumerate(parts)]
    before = contents(bank)
    for run in (lambda: build(tmp_path / "new", given), lambda: put(bank, given)):
        with pytest.raises(BankError, match="'twice' comes twice"):
            run()
    assert contents(bank) == before and not (tmp_path / "new").exists()
    build(tmp_path / "new", [replace(named("once", n), part=n + 1) for n in range(4)])


def test_documents_without_id_are_named_by_their_number_alone(bank):
    assert put(bank, [named("14", 0, "chosen"), named("", 0, "first"), named("", 0, "second")]) == 3
    opened = BankSnapshot.open(bank)
    assert [opened[number].id for number in (14, 15, 16)] == ["14", "", ""]
    assert opened.numbers_of("") == opened.numbers_of("15") == []
    put(bank, [named("15", 0, "an id like its number")])
    put(bank, [named("15", 0, "changed"), named("14", 0, "changed")], update=True)
    kept = {n: text for n, text in texts(bank).items() if n > 13}
    assert kept == {15: "first", 16: "second", 18: "changed", 19: "changed"}
    with pytest.raises(BankError, match="has no id: an update goes by id"):
        put(bank, [named("", 0)], update=True)
    with BankWriter(bank, "remove") as writer, pytest.raises(BankError, match="no document of id"):
        writer.remove(ids=[""])


def test_a_built_bank_gives_no_ids_either(tmp_path):
    build(tmp_path / "bank", [named("1", 0, "one"), named("", 1, "no id"), named("", 2, "none")])
    put(tmp_path / "bank", [named("1", 0, "new one")], update=True)
    assert texts(tmp_path / "bank") == {1: "no id", 2: "none", 3: "new one"}


def test_replacing_by_number_takes_all_parts_and_frees_their_id(tmp_path):
    path = tmp_path / "bank"
    parts = [replace(named("long", n), part=n + 1) for n in range(3)]
    build(path, [*parts, document(3), replace(named("", 4), id="")])

    def replaced(number, *documents):
        given = tiny_model(), tiny_tokenizer(), documents, FINGERPRINT
        return add_documents(path, *given, replacing=number)

    assert replaced(1, named("long", 0, "Short now.")) == 1
    assert [each.number for each in BankSnapshot.open(path)] == [3, 4, 5]
    assert replaced(4, named("", 0, "Nameless still.")) == 1
    before = contents(path)
    with pytest.raises(UnknownDocumentError, match="no document 4: nothing was changed"):
        replaced(4, named("", 0, "Again."))
    with pytest.raises(BankError, match="'d3' is in"):
        replaced(5, named("d3", 0, "Of another."))
    assert contents(path) == before
    kept = [(each.number, each.id, each.text) for each in BankSnapshot.open(path)]
    assert kept[1:] == [(5, "long", "Short now."), (6, "", "Nameless still.")]
