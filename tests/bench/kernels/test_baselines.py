"""What ours is compared with computes the same."""

import pytest
import torch
import torch.nn.functional as F
from msa_kernels import chunk_mean, context_attention, document_attention, document_scores
from msa_kernels.ragged import chunk_token_offsets, segment_ids

from msa_train.bench.kernels import baselines
from tests.kernels.kernel_cases import cu


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_published_document_scores():
    query, keys = (F.normalize(torch.randn(n, h, 8), dim=2) for n, h in ((5, 4), (7, 2)))
    chunk_cu = cu([2, 1, 3, 1])
    vectors = query.unflatten(1, (2, -1)).sum(2).flatten(1) / 4
    one = torch.zeros(1, dtype=torch.int64), torch.tensor([0, 4])
    ours = document_scores(vectors, cu([5]), keys.flatten(1), chunk_cu, *one)
    grouped = query.unflatten(1, (2, -1)).permute(1, 2, 0, 3)[None]
    sliced = keys.permute(1, 2, 0)[None, :, None]
    theirs = baselines.published_document_scores(grouped, sliced, segment_ids(chunk_cu), 4)
    torch.testing.assert_close(ours, theirs)


def test_published_chunk_means():
    x, documents = torch.randn(11, 6), cu([5, 0, 6])
    theirs = baselines.published_chunk_means(x, chunk_token_offsets(documents, 4))
    torch.testing.assert_close(chunk_mean(x, documents, 4), theirs)


def test_published_attention():
    q, k, v = (torch.randn(2, 3, heads, 8) for heads in (4, 2, 2))
    pooled_k, pooled_v = torch.randn(2, 6, 2, 8)
    index = torch.tensor([[0, 2, 5], [1, 2, 3]])
    theirs = baselines.published_attention(q, k, v, pooled_k, pooled_v, index, 0.3)
    flat, ctx_cu, index_cu = (x.flatten(0, 1) for x in (q, k, v)), cu([3, 3]), cu([3, 3])
    ours = context_attention(
        *flat, ctx_cu, ctx_cu, pooled_k, pooled_v, index.flatten(), index_cu, None, None, 0.3
    )
    torch.testing.assert_close(ours, theirs.flatten(0, 1))


@pytest.mark.parametrize(
    ("lengths", "name"), [([4, 4], "sdpa, equal lengths"), ([3, 1, 5], "sdpa, padded")]
)
def test_causal_attention_of_libraries(lengths, name):
    states = [torch.randn(sum(lengths), heads, 8) for heads in (4, 2, 2)]
    peers = baselines.causal_attention(states, cu(lengths), 0.3)
    ours = document_attention(*states, cu(lengths), 0.3)
    torch.testing.assert_close(peers[name](), ours)


def test_a_library_that_cannot_is_named_and_left_out(capsys):
    def fails():
        raise RuntimeError("no such GPU\nand more")

    able = baselines._able(
        {"works": lambda: lambda: torch.ones(1), "fails": lambda: fails, "is not made": fails}
    )
    assert list(able) == ["works"]
    assert capsys.readouterr().err == "".join(
        f"{name} is left out: RuntimeError: no such GPU\n" for name in ("fails", "is not made")
    )


def test_gathered_attention_of_libraries():
    own = [torch.randn(6, heads, 8) for heads in (4, 2, 2)]
    pooled = [torch.randn(6, 2, 8) for _ in "kv"]
    index = torch.tensor([[0, 2, 5], [1, 2, 3]])
    ctx_cu, index_cu = cu([3, 3]), cu([3, 3])
    ours = context_attention(
        *own, ctx_cu, ctx_cu, *pooled, index.flatten(), index_cu, None, None, 0.3
    )
    peers = baselines.gathered_attention(own, pooled, index, 0.3)
    torch.testing.assert_close(peers["sdpa, gathered"](), ours)
