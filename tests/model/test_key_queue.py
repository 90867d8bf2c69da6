"""The queue of stale router keys against what it says: scores, limits, identity, gradients."""

import math

import pytest
import torch

from msa_train.model.config import RouterConfig
from msa_train.model.key_queue import KeyQueue
from msa_train.model.losses import stale_loss_sum
from msa_train.model.router import Routing

LAYER = 1


def routing(query):
    """Two contexts, of 3 and 2 query tokens."""
    none = torch.zeros(0)
    return Routing(query, torch.tensor([0, 3, 5]), none, none, none, none, None)


def bank(generator, chunks, first_id):
    keys = torch.randn(sum(chunks), 4, generator=generator)
    ids = torch.arange(first_id, first_id + len(chunks))
    return {LAYER: keys}, torch.tensor(chunks), ids


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_scores_are_the_best_of_tokens_and_chunks(generator):
    queue, banks = KeyQueue([LAYER], 10), []
    for first, chunks in ((0, [2, 1]), (2, [1, 3])):
        banks.append(bank(generator, chunks, first))
        queue.add(*banks[-1])
    query = torch.randn(5, 4, generator=generator)
    scores = queue.scores(LAYER, routing(query), torch.tensor([99]), RouterConfig())
    keys = torch.cat([keys[LAYER] for keys, _, _ in banks]).split([2, 1, 1, 3])
    for context, tokens in enumerate(query.split([3, 2])):
        for document, own in enumerate(keys):
            best = max(float(token @ key) for token in tokens for key in own)
            assert float(scores[context, document]) == pytest.approx(best, rel=1e-5)


def test_a_document_of_the_bank_is_no_negative_twice(generator):
    queue = KeyQueue([LAYER], 10)
    queue.add(*bank(generator, [1, 2, 1], 5))
    scores = queue.scores(LAYER, routing(torch.randn(5, 4)), torch.tensor([6, 9]), RouterConfig())
    assert torch.isinf(scores).tolist() == [[False, True, False]] * 2


def test_the_oldest_leave_and_a_document_that_comes_again_is_renewed(generator):
    queue = KeyQueue([LAYER], 4)
    queue.add(*bank(generator, [1, 2, 1], 0))
    again = bank(generator, [3, 1], 1)
    queue.add(*again)
    state = queue.state_dict()
    assert state["ids"].tolist() == [0, 1, 2] and state["chunks"].tolist() == [1, 3, 1]
    torch.testing.assert_close(state["keys1"][1:], again[0][LAYER])
    queue.add(*bank(generator, [1, 1, 1], 10))
    assert queue.state_dict()["ids"].tolist() == [2, 10, 11, 12]
    assert len(queue.state_dict()["keys1"]) == 4
    queue.add(*bank(generator, [1] * 6, 20))
    assert len(queue) == 6, "a bank that is larger than the queue stays whole"


def test_without_room_it_is_empty(generator):
    queue = KeyQueue([LAYER], 4)
    queue.add(*bank(generator, [1, 2], 0))
    queue.keep(3)
    assert len(queue) == 2
    queue.keep(0)
    assert len(queue) == 0, "before the first loss that could read it"
    queue.add(*bank(generator, [1, 2], 5))
    assert len(queue) == 0 and queue.state_dict().keys() == {"chunks", "ids"}


def test_it_continues_from_its_state(generator):
    queue, other = KeyQueue([LAYER], 10), KeyQueue([LAYER], 10)
    queue.add(*bank(generator, [1, 2], 0))
    other.load_state_dict(queue.state_dict())
    query = torch.randn(5, 4, generator=generator)
    ours, theirs = (
        q.scores(LAYER, routing(query), torch.tensor([9]), RouterConfig()) for q in (queue, other)
    )
    assert torch.equal(ours, theirs)


def test_gradients_reach_the_queries_and_not_the_keys(generator):
    queue = KeyQueue([LAYER], 10)
    keys, chunks, ids = bank(generator, [1, 2], 0)
    keys[LAYER].requires_grad_()
    queue.add(keys, chunks, ids)
    query = torch.randn(5, 4, generator=generator, requires_grad=True)
    queue.scores(LAYER, routing(query), torch.tensor([9]), RouterConfig()).sum().backward()
    assert query.grad.abs().sum() > 0 and keys[LAYER].grad is None


def test_a_positive_competes_with_the_stale_alone():
    scores, positives = torch.tensor([[0.5, 0.9]]), torch.tensor([[True, False]])
    stale = torch.tensor([[0.3, -math.inf, 0.1]])
    exps = [math.exp(s / 0.1) for s in (0.5, 0.3, 0.1)]
    loss = stale_loss_sum(scores, stale, positives, RouterConfig())
    assert float(loss) == pytest.approx(-math.log(exps[0] / sum(exps)), rel=1e-5)


def test_several_queues_become_one_of_their_newest_documents(generator):
    """A document that two of them have is there once."""
    banks = [[bank(generator, [1, 2], 0), bank(generator, [3, 1, 2], 2)]]
    banks.append([bank(generator, [2, 2], 8), bank(generator, [1], 4)])
    queues = [KeyQueue([LAYER], 9), KeyQueue([LAYER], 9)]
    for queue, added in zip(queues, banks, strict=True):
        for each in added:
            queue.add(*each)
    merged = KeyQueue([LAYER], 9)
    merged.add(*bank(generator, [1], 70))
    merged.merge([queue.state_dict() for queue in queues])
    state = merged.state_dict()
    assert state["ids"].tolist() == [2, 3, 9, 4] and state["chunks"].tolist() == [3, 1, 2, 1]
    newest = [banks[0][1][0][LAYER][:4], banks[1][0][0][LAYER][2:], banks[1][1][0][LAYER]]
    assert torch.equal(state[f"keys{LAYER}"], torch.cat(newest)) and merged.limit == 9
    merged.merge([KeyQueue([LAYER]).state_dict()])
    assert len(merged) == 0
    merged.merge([queues[0].state_dict()])
    assert merged.state_dict()["ids"].tolist() == [0, 1, 2, 3, 4]
