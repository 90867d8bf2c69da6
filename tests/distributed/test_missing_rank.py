"""A rank that never comes: the others end in time and say so."""

import os

import pytest

from tests.distributed.ranks import Apart, free_port


def meet() -> None:
    from msa_train.errors import RankError
    from msa_train.parallel import groups

    try:
        groups.start(tensor_parallel=1, timeout_s=4)
    except RankError as error:
        print(error, flush=True)
    os._exit(0)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_alone_of_two_gives_up(rank, tmp_path):
    environment = os.environ | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    done = Apart(tmp_path, environment, meet).end()
    assert f"rank {rank} of 2 met no rank 0" in done.out, done.err[-2000:]
    assert "training.timeout_s" in done.out
