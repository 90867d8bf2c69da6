"""One large layer: ranks find together what one finds, in every form of keys."""

import pytest
import torch

from msa_train.bench.memory import layer
from msa_train.errors import RankError
from msa_train.memory.search.searcher import Found, best_of
from tests.bench.memory.tiny_sizes import SIZES


def test_two_ranks_find_what_one_finds():
    def rank(form, first, chunks):
        return layer.Rank(form, first, chunks, 300, 16, 2, (3,))

    for form in layer.FORMS:
        halves = [layer.rank_runs(rank(form, first, 150)) for first in (0, 150)]
        found = best_of([Found(*map(torch.tensor, r["search", 3]())) for r in halves], layer.TOP_K)
        keys = torch.cat([layer.unit_keys(rank(form, first, 150)) for first in (0, 150)]).double()
        query = layer.unit_query(3, rank(form, 0, 150)).double()
        scores, best = (keys @ query.T).amax(1).sort(descending=True, stable=True)
        assert found.places[0].tolist() == best[: layer.TOP_K].tolist()
        assert found.scores[0].tolist() == pytest.approx(scores[: layer.TOP_K].tolist(), rel=1e-6)
        whole = 300 * 16 * {"float32": 4, "bfloat16": 2, "int8": 1}[form]
        held = sum(run["memory", 3]()["keys_gb"] for run in halves) * 1e9
        assert whole <= held <= 2.1 * whole


def test_ranks_in_processes_answer_and_a_dead_one_is_named():
    with layer.started("int8", 2, SIZES) as workers:
        row = layer.row("int8", workers, 5, SIZES)
        assert row["search_ms"] > 0 and row["keys_gb"] >= 0 and row["question_tokens"] == 5
        assert (row["ranks"], row["threads_each"]) == (2, max(1, torch.get_num_threads() // 2))
        workers.processes[0].kill()
        workers.processes[0].join()
        with pytest.raises(RankError, match="rank 0 of 2 died"):
            workers.ask("search", 5)
