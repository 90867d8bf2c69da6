"""What a search on a device costs: the same for any number of segments, and one wait a layer."""

import pytest
import torch

from tests.memory.search.random_memory import HEADS, LAYER, questions, searcher_of, table_searcher
from tests.pretend.cuda import counting, pretended_cuda

COUNTS = [1 + place % 3 for place in range(192)]
K = 3
# A layer, and what a round's first layer may prepare for all. A float32 query meets narrow keys in
# two parts; rounded keys have bounds of their own, and exact scores in a second step.
LAUNCHES, ROUND = {"stored": 30, "bfloat16": 33, "int8": 45}, 10
WIDTH = 32  # heads of 16 values: whole tiles of 8 bits


@pytest.fixture
def cuda():
    with pretended_cuda() as device:
        yield device


def keys():
    gen = torch.Generator().manual_seed(0)
    drawn = torch.randn(sum(COUNTS), HEADS, WIDTH // HEADS, generator=gen)
    cu = torch.tensor([0, *COUNTS]).cumsum(0)
    return torch.nn.functional.normalize(drawn, dim=2).flatten(1), cu


def asked(lengths, device="cpu"):
    query, query_cu = questions(lengths, 1, WIDTH)
    return query.to(device), query_cu.to(device)


@pytest.mark.parametrize("segments", [1, 96])
@pytest.mark.parametrize("contexts", [1, 32])
@pytest.mark.parametrize(("form", "waits"), [("stored", 1), ("bfloat16", 1), ("int8", 2)])
def test_a_layer_costs_the_same_for_any_number_of_segments(cuda, segments, contexts, form, waits):
    full, cu = keys()
    dtype = torch.float32 if form == "stored" else torch.bfloat16
    full = full.to(dtype).float()
    cuts = range(0, len(COUNTS), len(COUNTS) // segments)
    live = torch.arange(len(COUNTS)) != 5
    given = COUNTS, full, cu, list(cuts), form, live, dtype
    expected = searcher_of(*given).best(LAYER, *asked([4] * contexts), K)
    searcher = table_searcher(*given, device=cuda)
    question = asked([4] * contexts, cuda)
    with torch.inference_mode():
        searcher.best(LAYER, *question, K)
        with counting() as counts:
            found = searcher.best(LAYER, *question, K)
    assert torch.equal(found.places, expected.places)
    assert torch.equal(found.scores, expected.scores)
    # Rounded keys are compared with stored ones, which lie on the host.
    assert counts.syncs == waits and counts.copies <= 2 * waits - 1, str(counts)
    assert counts.launches <= LAUNCHES[form], str(counts)


def test_a_rounds_first_layer_waits_no_more_than_the_others(cuda):
    full, cu = keys()
    searcher = table_searcher(COUNTS, full, cu, [0, 96], device=cuda)
    question = asked([4] * 8, cuda)
    with torch.inference_mode(), counting() as counts:
        searcher.best(LAYER, *question, K)
    assert counts.syncs == 1 and counts.launches <= LAUNCHES["stored"] + ROUND, str(counts)
