"""Scorings: what they compute, and the example of docs/extending.md carried out."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from msa_kernels.ragged import cumulative

from data_pipeline.protocol import prompt_pieces
from msa_train.errors import CheckpointError, ConfigError
from msa_train.interop.published_config import from_published, to_published
from msa_train.memory.bank.build import build_bank
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.engine.model_runner import prefill_pieces
from msa_train.memory.search.loader import BankLoader, bank_view
from msa_train.memory.search.settings import TierSettings
from msa_train.model import scoring
from msa_train.model.config import RouterConfig
from msa_train.model.scoring import DotProduct, PerHead
from tests.batches import CONTEXTS, RAGGED, decoder_of, random_batch, tiny_config
from tests.memory.tiny import FINGERPRINT, tiny_documents, tiny_model, tiny_tokenizer

HEADS, GROUPS, DIM = 4, 2, 8


def given(seed=0):
    """Router queries of 2 contexts (3 and 2 tokens), keys of 3 documents (2, 1, 2 chunks)."""
    random = torch.Generator().manual_seed(seed)
    rq = torch.randn(5, HEADS, DIM, generator=random)
    rk = torch.randn(5, GROUPS, DIM, generator=random)
    return rq, torch.tensor([0, 3, 5]), rk, torch.tensor([0, 2, 3, 5])


def per_head(rq, rk, router):
    """[T, C, H] products by the definition (SPEC section 2), scaled as published."""
    if router.similarity == "cosine":
        rq, rk = F.normalize(rq, dim=-1), F.normalize(rk, dim=-1)
    products = torch.einsum("thd,chd->tch", rq, rk.repeat_interleave(HEADS // GROUPS, 1))
    plain = router.similarity == "cosine" and router.decouple
    return products if plain else products * DIM**-0.5


def reduced(scores, how, dim):
    return {"max": scores.amax, "mean": scores.mean}[how](dim)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("decouple", [True, False])
@pytest.mark.parametrize("head", ["mean", "max"])
@pytest.mark.parametrize("query", ["max", "mean", "last"])
@pytest.mark.parametrize("chunk", ["max", "mean"])
def test_document_scores_are_the_definition(similarity, decouple, head, query, chunk):
    router = RouterConfig(
        similarity=similarity, decouple=decouple, head_reduce=head, query_reduce=query,
        chunk_reduce=chunk, gate="none",
    )  # fmt: skip
    rq, query_cu, rk, chunk_cu = given()
    ours = router.scoring
    assert type(ours) is (DotProduct if (head, query, chunk) == ("mean", "max", "max") else PerHead)
    vectors, cu = ours.query_vectors(rq, query_cu, GROUPS, HEADS)
    bank = torch.tensor([0, 0]), torch.tensor([0, 3])
    scores = ours.document_scores(vectors, cu, ours.key_vectors(rk), chunk_cu, *bank)
    heads = reduced(per_head(rq, rk, router), head, 2)
    for context in range(2):
        tokens = heads[query_cu[context] : query_cu[context + 1]]
        chunks = tokens[-1] if query == "last" else reduced(tokens, query, 0)
        each = [reduced(chunks[chunk_cu[d] : chunk_cu[d + 1]], chunk, 0) for d in range(3)]
        torch.testing.assert_close(scores[context], torch.stack(each))


def test_chunk_scores_are_those_a_documents_score_is_the_best_of():
    rq, query_cu, rk, chunk_cu = given()
    ours = RouterConfig().scoring
    vectors, cu = ours.query_vectors(rq, query_cu, GROUPS, HEADS)
    keys = ours.key_vectors(rk)
    index, index_cu = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 5, 5])
    chunks = ours.chunk_scores(vectors, cu, keys, index, index_cu)
    bank = torch.tensor([0, 0]), torch.tensor([0, 3])
    documents = ours.document_scores(vectors, cu, keys, chunk_cu, *bank)[0]
    torch.testing.assert_close(documents, torch.stack([c.max() for c in chunks.split([2, 1, 2])]))
    other = RouterConfig(head_reduce="max", gate="none").scoring
    assert ours.scores_chunks and not other.scores_chunks
    assert other.chunk_scores(vectors, cu, keys, index, index_cu) is None


def test_no_key_is_longer_than_said():
    _, _, rk, _ = given()
    ours = RouterConfig().scoring
    assert float(ours.key_vectors(rk).norm(dim=1).max()) <= ours.longest_key(GROUPS) * 1.00001
    assert RouterConfig(similarity="dot").scoring.longest_key(GROUPS) is None


def test_reductions_nobody_handles_are_refused_by_name():
    with pytest.raises(ConfigError, match="query_reduce median"):
        RouterConfig(query_reduce="median", gate="none")
    raw = to_published(tiny_config("none"))
    del raw["msa_train"]
    raw["msa_config"]["query_reduce_method"] = "median"
    with pytest.raises(CheckpointError, match="query_reduce_method 'median'"):
        from_published(raw, "serving")


def test_a_pooled_query_is_the_mean_of_projections_normalised_per_head():
    ours = RouterConfig(query_reduce="pooled").scoring
    _, _, rk, chunk_cu = given()
    query_cu = torch.tensor([0, 3, 3, 5])  # the second context asks nothing
    weight = torch.randn(HEADS * DIM, 7, generator=torch.Generator().manual_seed(3))
    states = torch.randn(5, 7, generator=torch.Generator().manual_seed(4))
    pooled, cu = ours.pool_tokens(states, query_cu)
    assert cu.tolist() == [0, 1, 1, 2]
    rows = (pooled @ weight.T).unflatten(1, (HEADS, DIM))
    vectors, cu = ours.query_vectors(rows, cu, GROUPS, HEADS)
    bank = torch.tensor([0, 0, 0]), torch.tensor([0, 3])
    scores = ours.document_scores(vectors, cu, ours.key_vectors(rk), chunk_cu, *bank)
    assert scores[1].isneginf().all()
    keys = F.normalize(rk, dim=-1).repeat_interleave(HEADS // GROUPS, 1)
    for context, (first, end) in ((0, (0, 3)), (2, (3, 5))):
        mean = torch.stack([weight @ state for state in states[first:end]]).mean(0)
        query = F.normalize(mean.unflatten(0, (HEADS, DIM)), dim=-1)
        chunks = (query * keys).sum(2).mean(1)
        expected = torch.stack([chunks[chunk_cu[d] : chunk_cu[d + 1]].max() for d in range(3)])
        torch.testing.assert_close(scores[context], expected)


# The example of docs/extending.md: one vector per context, whatever its length.
class LongestQuery(DotProduct):
    """The query token whose projection is longest speaks for its context."""

    published = tensor_parallel = False
    reductions = (("mean", "longest", "max"),)

    def query_vectors(self, rq, query_cu, kv_heads, total_heads):
        lengths, bounds = rq.flatten(1).norm(dim=1), query_cu.tolist()
        spans = [(first, end) for first, end in pairwise(bounds) if first < end]
        rows = [first + int(lengths[first:end].argmax()) for first, end in spans]
        one = cumulative((query_cu.diff() > 0).long())  # a context without query tokens has none
        return super().query_vectors(rq[rows], one, kv_heads, total_heads)


@pytest.fixture
def longest():
    scoring.register(LongestQuery)
    yield
    scoring.SCORINGS.remove(LongestQuery)


@pytest.mark.usefixtures("longest")
def test_a_new_scoring_trains_and_serves(megatron):
    config = tiny_config("threshold", query_reduce="longest")
    batch = random_batch(RAGGED, CONTEXTS, config)
    module = megatron(config)
    hidden, streams = module.hidden_states(batch)
    losses = module(batch)
    (losses.lm + losses.router).backward()
    out = decoder_of(config)(batch)
    torch.testing.assert_close(hidden, out.hidden, rtol=1e-5, atol=1e-5)
    for layer in config.router_layers:
        routing = out.routings[layer]
        assert torch.equal(streams.routings[layer].documents, routing.documents)
        assert len(routing.query) == len(CONTEXTS)  # one vector each
        assert module.decoder.layers[layer].self_attention.router_q.weight.grad.any()
    published = to_published(config)
    assert from_published(published, "serving") == config
    assert not published["msa_train"]["served_by_published_engine"]


@pytest.mark.usefixtures("longest")
@pytest.mark.parametrize("form", ["stored", "int8"])
def test_a_new_scoring_searches_a_bank(tmp_path, form):
    model, tokenizer = tiny_model("threshold", query_reduce="longest"), tiny_tokenizer()
    build_bank(tmp_path / "b", model, tokenizer, tiny_documents(), FINGERPRINT, "float32", 50)
    bank = BankSnapshot.open(tmp_path / "b", FINGERPRINT)
    view = bank_view(bank, model.config.router, BankLoader(TierSettings(form)))
    pieces = [prompt_pieces(text) for text in ("Where is it?", "Who sleeps standing?")]
    with torch.no_grad():
        found = prefill_pieces(model, tokenizer, view, pieces).selected
    for layer, selected in found.items():
        routing, keys = selected.routing, bank.router_keys(layer)
        chunks = routing.query @ keys.T
        counts = bank.chunk_cu.diff().tolist()
        documents = torch.stack([each.amax(1) for each in chunks.split(counts, 1)], 1)
        best = documents.topk(model.config.router.top_k)
        assert torch.equal(routing.documents, best.indices)
        torch.testing.assert_close(routing.values, best.values)
