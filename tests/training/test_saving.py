"""Checkpoints that are written beside the steps are those that steps wait for, in every way."""

import errno
import json
import threading

import pytest

from tests.distributed.ranks import run_ranks
from tests.distributed.runs import logged, settings

STAGES = (1, 3)
RANKS = 2


@pytest.fixture(scope="module")
def saved(shards, tmp_path_factory):
    """(folder, what each rank found)."""
    root = tmp_path_factory.mktemp("saving")
    return root, run_ranks(RANKS, on_each_rank, root, shards)


def on_each_rank(root, shards):
    from msa_train.parallel import groups

    groups.start(tensor_parallel=1, timeout_s=60)

    def run(name, **overrides):
        return trained(settings(root / name, training__shards=shards, training__checkpoint_every=1,
                                training__keep_checkpoints=4, **overrides))  # fmt: skip

    for stage in STAGES:
        for how in ("plain", "async"):
            run(f"{how}{stage}", training__zero_stage=stage, training__async_save=how == "async")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        fill_the_disk(patch, at=2)
        for how in ("plain", "async"):
            found[how] = run(f"full-{how}", training__async_save=how == "async")
    with pytest.MonkeyPatch.context() as patch:
        found["said"] = write_slowly(patch)
        run("slow", training__async_save=True)
    return found | {"late": late_meeting()}


def trained(arguments):
    """Exit code and step; or the error that a run met, with what is told of it."""
    from msa_train.config import load_config
    from msa_train.errors import MSAError
    from msa_train.training.last_words import LastWords
    from msa_train.training.trainer import Trainer

    config = load_config(arguments)
    config.path.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, False, LastWords(config.path))
    try:
        return trainer.run(), trainer.step
    except MSAError as error:
        return error.exit_code, trainer.step, str(error), error.on_all_ranks
    finally:
        trainer.close()


def fill_the_disk(patch, at):
    """For what rank 1 writes of the checkpoint of this step."""
    from data_pipeline import files
    from msa_train.training import checkpoint

    real = files.NewFile.write
    begin = checkpoint.begin
    writing = []

    def write(self, data):
        if writing and files_of_rank(1):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    def begin_at(engine, config, tokenizer, state, beside):
        writing[:] = [state.step] if state.step == at else []
        complete = begin(engine, config, tokenizer, state, beside)

        def completed():
            try:
                return complete()
            finally:
                writing.clear()

        return completed

    patch.setattr(files.NewFile, "write", write)
    patch.setattr(checkpoint, "begin", begin_at)


def files_of_rank(rank):
    import torch.distributed as dist

    return dist.get_rank() == rank


def write_slowly(patch):
    """The first checkpoint is not written until the second one waits for it. Returns what the
    saver then says."""
    from msa_train.training import saving
    from msa_train.training.rank_files import RankFiles

    said, waited = [], threading.Event()
    write, finish = RankFiles.write, saving.Saver.finish

    def slow(self):
        if threading.current_thread() is not threading.main_thread():
            assert waited.wait(60)
        write(self)

    def asked(self):
        if self._writing is not None:
            waited.set()
        finish(self)

    patch.setattr(RankFiles, "write", slow)
    patch.setattr(saving.Saver, "finish", asked)
    patch.setattr(saving, "say", said.append)
    return said


def late_meeting():
    """What rank 0 says of one that does not come, and the others of rank 0."""
    import torch.distributed as dist

    from msa_train.errors import RankError
    from msa_train.training.meeting import Meeting

    meeting = Meeting("late", "a test", timeout_s=1)
    assert meeting.all(meeting.rank) == [0, 1]
    found = None
    if meeting.rank == 0:
        try:
            meeting.all("here")
        except RankError as error:
            found = str(error)
    dist.barrier()
    return found


def steps(folder):
    return sorted(int(path.name[-9:]) for path in (folder / "checkpoints").glob("step-*"))


def sealed(folder, stage):
    """Bytes and SHA-256 of every file; bytes alone where ZeRO-3 pads shares with memory that nobody
    has written."""
    found = json.loads((folder / "seal.json").read_text())["files"]
    padded = stage == 3
    return {k: v[0] if padded and "optim_states" in k else tuple(v) for k, v in found.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_files_are_written(saved, stage):
    folders = [saved[0] / f"{how}{stage}" for how in ("plain", "async")]
    for step in steps(folders[0]):
        plain, beside = (sealed(each / f"checkpoints/step-{step:09d}", stage) for each in folders)
        assert plain.pop("config.yaml") != beside.pop("config.yaml"), "which says how it is saved"
        assert plain == beside and len(plain) >= 6
    assert steps(folders[0]) == steps(folders[1]) == [1, 2, 3, 4]
    assert [row["loss/lm"] for row in logged(folders[0])] == [
        row["loss/lm"] for row in logged(folders[1])
    ]


@pytest.mark.parametrize(("how", "ends"), [("plain", (2,)), ("async", (3, 4))])
def test_a_full_disk_ends_the_run_on_all_ranks_with_one_line(saved, how, ends):
    """The write of one rank fails; beside the training, that is met within the next steps."""
    found = [each[how] for each in saved[1]]
    assert len(set(found)) == 1, "every rank meets the same"
    code, step, said, everywhere = found[0]
    assert code == 11 and step in ends and everywhere
    assert "No space left on device; make room" in said and "rank_1" in said
    checkpoints = saved[0] / f"full-{how}" / "checkpoints"
    assert steps(checkpoints.parent) == [1], "the last good one remains"
    assert not list(checkpoints.glob(".step-*")), "and nothing of the other"


def test_a_second_checkpoint_waits_for_the_first(saved):
    said = saved[1][0]["said"]
    assert said and said[0].startswith("the checkpoint of step 2 waited ")
    assert steps(saved[0] / "slow") == [1, 2, 3, 4]
    stalls = [row["checkpoint_stall_s"] for row in logged(saved[0] / "slow")]
    assert stalls[0] == 0 < min(stalls[1:]), "each is told with the step after it"


def test_a_rank_that_does_not_come_is_named(saved):
    said = saved[1][0]["late"]
    assert said.startswith("a test: nothing came of rank 1 within 1 s (training.timeout_s)")
