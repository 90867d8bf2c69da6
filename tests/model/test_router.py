"""Selection by score: fewer documents than K, ties, banks of their own."""

import torch

from msa_train.model.config import RouterConfig
from msa_train.model.router import route

# Two banks, of 3 documents (2, 1, 1 chunks) and of 1; a query vector for each of 3 contexts.
KEYS = torch.tensor([[1.0, 0], [0, 1], [0, 1], [3, 3], [1, 1]])
CHUNK_CU, BANK_CU = torch.tensor([0, 2, 3, 4, 5]), torch.tensor([0, 3, 4])
QUERY, QUERY_CU = torch.tensor([[1.0, 0], [0, 1], [2, 0]]), torch.tensor([0, 1, 2, 3])
CTX_BANK = torch.tensor([0, 0, 1])


def routed(top_k, gate="threshold"):
    router = RouterConfig(top_k=top_k, gate=gate)
    return route(QUERY, QUERY_CU, KEYS, CHUNK_CU, CTX_BANK, BANK_CU, router)


def test_the_best_documents_of_each_contexts_bank():
    routing = routed(2)
    inf = torch.inf
    assert routing.document_scores.tolist() == [[1, 0, 3, -inf], [1, 1, 3, -inf], [-inf] * 3 + [2]]
    # Equal scores go to the lower number; where there are fewer, -1.
    assert routing.documents.tolist() == [[2, 0], [2, 0], [3, -1]]
    assert routing.values.tolist() == [[3, 1], [3, 1], [2, -inf]]
    assert routing.chunk_index.tolist() == [0, 1, 3, 0, 1, 3, 4]  # documents ascending
    assert routing.index_cu.tolist() == [0, 3, 6, 7]
    assert routing.chunk_scores.tolist() == [1, 0, 3, 0, 1, 3, 2]


def test_chunks_are_scored_for_a_gate_alone():
    assert routed(1, gate="none").chunk_scores is None
    routing = routed(9)
    assert routing.documents.shape == (3, 4)  # as many as there are
