"""Several ranks encode what one does, byte by byte; one that is lost fails the build, by name."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from msa_train.errors import BankError, RankError
from msa_train.memory.bank.build import add_documents
from msa_train.memory.bank.lock import BusyError
from msa_train.memory.bank.manifest import BankManifest, building_name
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.verify import verify_bank
from tests.memory.building import (
    BLOCKS,
    BUDGET,
    build,
    contents,
    document,
    full,
    ranks,
    signalled,
)
from tests.memory.tiny import FINGERPRINT, tiny_model, tiny_tokenizer

COUNT = 14  # five blocks, the last of two documents


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "bank"
    build(path, COUNT)
    return contents(path)


def test_ranks_build_the_same_bank(tmp_path, whole):
    build(tmp_path / "bank", COUNT, ranks=ranks(2))
    assert contents(tmp_path / "bank") == whole


def test_ranks_add_the_same_documents(tmp_path):
    for name, chosen in (("one", None), ("two", ranks(2))):
        build(tmp_path / name, 4)
        new = [replace(document(number), id=f"new{number}") for number in range(8)]
        given = tmp_path / name, tiny_model(), tiny_tokenizer(), new, FINGERPRINT
        assert add_documents(*given, token_budget=BUDGET, size=BLOCKS, ranks=chosen) == 8
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert [entry.first for entry in contents(tmp_path / "two")[0]] == [0, 3, 4, 7, 10]


@pytest.mark.parametrize(
    ("count", "act", "error", "said"),
    [
        (2, partial(signalled, signal.SIGKILL), RankError, r"rank [01] \(process \d+\).*died"),
        (
            1,
            partial(signalled, signal.SIGSTOP),
            RankError,
            r"rank 0 .*nothing for 10 seconds.*6 to",
        ),
        (1, partial(int, "x"), RankError, r"rank 0 .* failed: ValueError"),
        (1, full, BankError, "No space left"),
    ],
    ids=["killed", "stalled", "failed", "full disk"],
)
def test_a_lost_rank_fails_the_build_which_goes_on_later(tmp_path, whole, count, act, error, said):
    began, timeout = time.monotonic(), 10.0 if "nothing" in said else 60.0
    with pytest.raises(error, match=said):
        build(tmp_path / "bank", COUNT, ranks=ranks(count, (7, act), timeout))
    assert time.monotonic() - began < 4 * timeout
    left = building_name(tmp_path / "bank")
    if count == 1:
        assert len(BankSnapshot.open(left)) == 6
    assert not left.exists() or not verify_bank(left)["orphans"]
    build(tmp_path / "bank", COUNT)
    assert contents(tmp_path / "bank") == whole


def test_ranks_hold_the_lock_until_they_have_ended(tmp_path):
    """A rank whose writer's process was killed is no second writer beside the next."""
    code = f"""
        import time
        from functools import partial
        from tests.memory.building import build, ranks
        if __name__ == "__main__":
            harm = 4, partial(time.sleep, 4)
            build({str(tmp_path / "bank")!r}, {COUNT}, ranks=ranks(1, harm=harm))
    """
    script = tmp_path / "writer.py"
    script.write_text(textwrap.dedent(code))
    root = Path(__file__).resolve().parents[3]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'kernels'}"}
    writer = subprocess.Popen([sys.executable, str(script)], env=environment)
    left = building_name(tmp_path / "bank")
    for _ in range(1200):
        if (left / "manifest.json").exists() and len(BankManifest.load(left).segments) == 1:
            break
        time.sleep(0.05)
    writer.kill()
    writer.wait(60)
    with pytest.raises(BusyError, match=f"process {writer.pid} "):
        build(tmp_path / "bank", COUNT)
    for _ in range(600):
        try:
            build(tmp_path / "bank", COUNT)
            break
        except BusyError:
            time.sleep(0.05)
    assert len(BankSnapshot.open(tmp_path / "bank")) == COUNT
