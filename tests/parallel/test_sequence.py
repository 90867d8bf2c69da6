"""States that lie on several ranks are read as the whole would be; gradients find their rank."""

import pytest
import torch
from msa_kernels import chunk_mean
from msa_kernels.ragged import chunk_token_offsets

from tests.distributed.ranks import run_ranks

RANKS, CHUNK, DOCUMENTS = 2, 4, [6, 1, 9]
TOKENS = sum(DOCUMENTS) + 5  # contexts behind; an odd number: a row of padding
ROWS = torch.tensor([4, 0, 2])


def states():
    gen = torch.Generator().manual_seed(0)
    return torch.randn(TOKENS, 8, generator=gen, dtype=torch.float64, requires_grad=True)


def what_is_read(h, documents):
    """Of states [N, d], or split ones: rows of contexts, and means of chunks."""
    cu = torch.tensor([0, *DOCUMENTS]).cumsum(0)
    chunks = cu, CHUNK, chunk_token_offsets(cu, CHUNK)
    mean = chunk_mean(h[:documents], *chunks) if torch.is_tensor(h) else h.chunk_mean(*chunks)
    return h[documents:][ROWS], mean


def read_on_a_rank():
    from msa_train.parallel import groups
    from msa_train.parallel.sequence import SplitStates, padded

    groups.start(RANKS, 60)
    whole, documents = states(), sum(DOCUMENTS)
    size = len(padded(whole)) // RANKS
    rank = torch.distributed.get_rank()
    split = SplitStates.of(padded(whole)[rank * size : (rank + 1) * size])
    read = what_is_read(split, documents)
    contexts = split[documents:].split_anew(TOKENS - documents)
    loss = sum((each * torch.arange(each.numel()).view_as(each)).sum() for each in read)
    (loss + (rank + 1) * contexts.sum()).backward()
    return [each.detach().numpy() for each in (*read, contexts, whole.grad)]


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(RANKS, read_on_a_rank)


def test_rows_and_means_are_those_of_the_whole_on_every_rank(ranks):
    for expected, number in zip(what_is_read(states(), sum(DOCUMENTS)), (0, 1), strict=True):
        for found in ranks:
            torch.testing.assert_close(torch.from_numpy(found[number]), expected.detach())


def test_contexts_are_split_anew_evenly(ranks):
    parts = [torch.from_numpy(found[2]) for found in ranks]
    assert [len(part) for part in parts] == [3, 3]
    whole = torch.cat(parts)
    assert torch.equal(whole[:5], states().detach()[sum(DOCUMENTS) :]) and not whole[5:].any()


def test_each_rank_has_the_gradient_of_its_own_states(ranks):
    h = states()
    read = what_is_read(h, sum(DOCUMENTS))
    loss = sum((each * torch.arange(each.numel()).view_as(each)).sum() for each in read)
    contexts = h[sum(DOCUMENTS) :]
    (loss + contexts[:3].sum() + 2 * contexts[3:].sum()).backward()  # weighed by rank
    found = sum(torch.from_numpy(each[3]) for each in ranks)
    torch.testing.assert_close(found, h.grad)
