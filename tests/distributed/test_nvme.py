"""The optimizer's states in files that DeepSpeed's own op writes and reads, where libaio is."""

import pytest

from msa_train.config import load_config
from msa_train.training.planner.layout import Layout
from msa_train.training.planner.memory import needed, rank_bytes
from msa_train.training.planner.sizes import SampleSize
from msa_train.training.planner.weights import weights
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import go_on, logged, settings

# Weights of which a rank has more than the 1 MB from which on DeepSpeed swaps.
WIDE = {"hidden": 512, "heads": 8, "head_dim": 64, "ffn": 1024}
FILES = "{zero_optimization: {offload_optimizer: {device: nvme, nvme_path: DISK}}}"


def counted(trainer) -> int:
    """Bytes of the files of this rank's last engine, if it has any."""
    from msa_train.training import swap_files

    last = [*swap_files._own][-1:]
    return sum(file.stat().st_size for folder in last for file in folder.rglob("*.swp"))


def real(given):
    """On each rank: go_on; what it counted after each part, and whether nothing is left."""
    from msa_train.training import swap_files

    found = [after for _, after in go_on(given, counted)]
    folders = list(swap_files._own)
    swap_files.remove()
    return found, not any(each.exists() for each in folders)


@pytest.mark.slow
def test_the_real_op_trains_saves_and_goes_on(tmp_path):
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        pytest.skip("DeepSpeed's async_io cannot be built here: libaio-dev is missing")
    from data_pipeline.shards.build import build_shards

    (tmp_path / "disk").mkdir()
    wide = {f"model__{key}": value for key, value in WIDE.items()}
    wide |= {"training__shards": tmp_path / "shards", "training__zero_stage": 3}
    files = {"training__deepspeed": FILES.replace("DISK", str(tmp_path / "disk"))}
    build_shards(load_config(settings("unused", **wide)).corpus, tmp_path / "shards", workers=1)
    alone = settings(tmp_path / "alone", **wide), 4
    parts = [(settings(tmp_path / "files", **wide, **files), end) for end in (2, 4)]
    for (_, *seen), left_nothing in run_ranks(2, real, [alone, *parts], timeout_s=1200):
        config = load_config(parts[0][0])
        layout, sample = Layout.of(config, 2), SampleSize.usual(100, 10, 1, 10)
        planned = rank_bytes(config.model, layout, weights(config.model), sample, 1, 4)
        assert seen == [pytest.approx(needed(planned, "nvme"), rel=0.15)] * 2
        assert left_nothing
    ours, expected = logged(tmp_path / "files"), logged(tmp_path / "alone")
    assert [row["step"] for row in ours] == [1, 2, 3, 4]
    for a, b in zip(ours, expected, strict=True):
        assert a["loss/lm"] == pytest.approx(b["loss/lm"], rel=1e-6)
