"""The benchmark of memories at tiny sizes: what it measures is what it says."""

import json
import os

import pytest
import torch
from msa_train.bench.sizes import Sizes

from msa_train.bench import banks, generate, layer, process
from msa_train.bench import memory_peers as peers
from msa_train.bench.floor import against_floor, multiply, read_all
from msa_train.bench.memory import PARTS, measure
from msa_train.cli import main
from msa_train.errors import RankError
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.verify import verify_bank
from msa_train.memory.search.in_memory import encode_in_memory
from msa_train.memory.search.shard import Found, best_of
from tests.memory.tiny import FINGERPRINT, tiny_documents, tiny_model, tiny_tokenizer

CHUNK = 128  # a needle in the tiny tokenizer's short tokens
SIZES = Sizes(
    scale=(40 * CHUNK, 160 * CHUNK), planted=4, sample=40, real=500, append=(4000, 8000), added=6,
    chunks=300, width=16, heads=2, queries=(3, 5), vectors=500, dense=(60, 90), repeats=1,
)  # fmt: skip


def load():
    return tiny_model(chunk_size=CHUNK), tiny_tokenizer(), FINGERPRINT


@pytest.fixture
def here(monkeypatch):
    """Rows are measured in this process."""
    for module in (banks, peers):
        monkeypatch.setattr(module, "in_process", lambda run, *arguments: run(*arguments))


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("one", "two"):
        (tmp_path / "texts" / name).mkdir()
        lines = [
            {"id": f"d{i}", "title": name, "text": f"Text {i} of {name}. " * 9} for i in range(40)
        ]
        (tmp_path / "texts" / name / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "texts"


def test_all_parts_but_the_large_layer(here, corpus):
    parts = [part for part in PARTS if part != "layer_4b"]
    found = measure(load, SIZES, corpus, parts)
    assert json.loads(json.dumps(found)) == found
    small, large = found["scale"]
    assert (small["documents"], large["documents"]) == (40, 160)
    for row in found["scale"]:
        for name in ("tokens", "open_s", "route_ms", "floor_ms", "answer_ms", "rss_gb"):
            assert row[name] > 0
        assert row["floor_ms"] == max(row["read_ms"], row["gemm_ms"])
        assert 0 <= row["found"] <= 1 and row["layers"] == 2
    assert found["linearity"]["to_tokens"] == large["tokens"]
    assert found["real"]["tokens"] >= SIZES.real and found["real"]["tokens_per_s"] > 0
    for row in found["append"]["rows"]:
        assert row["visible"] == row["added"] == SIZES.added
        assert row["visible_s"] == pytest.approx(
            row["encode_s"] + row["commit_s"] + row["refresh_s"], abs=2e-3
        )
    assert found["faiss"]["same_documents"]
    assert [row["tokens"] for row in found["dense_ttft"]] == [60, 90]
    assert all(row["dense_s"] > 0 and row["ours_s"] > 0 for row in found["dense_ttft"])


def test_generated_banks_are_whole_and_hold_their_needles(tmp_path):
    torch.manual_seed(5)
    path = tmp_path / "bank"
    generate.generate_bank(*load(), path, 50 * CHUNK, 4, 40)
    assert verify_bank(path)["problems"] == []
    bank = BankSnapshot.open(path, FINGERPRINT)
    asked = generate.read_questions(path)
    assert [each.number for each in asked] == [6, 18, 31, 43] and len(bank) == 50
    model, tokenizer, _ = load()
    documents = [bank[each.number] for each in asked]
    assert all(
        each.answer in document.text for each, document in zip(asked, documents, strict=True)
    )
    truth = encode_in_memory(model, tokenizer, documents, dtype=generate.DTYPE)
    places = torch.tensor([each.number for each in asked])
    for number in model.config.router_layers:
        stored = bank.segments[0].pooled[number]
        key = truth.searcher.parts[0].keys[number].full
        torch.testing.assert_close(stored.key[places], key, rtol=0, atol=2e-3)
        heads = stored.key.float().unflatten(1, (model.config.kv_heads, -1)).norm(dim=2)
        torch.testing.assert_close(heads, torch.ones_like(heads), rtol=0, atol=2e-3)
    engine = banks.MemoryEngine(model, tokenizer, bank_view(path))
    nobody = [generate.Planted(each.question, 10_000, "") for each in asked]
    assert banks._found(engine, nobody, 16) == 0
    assert banks._found(engine, asked, 50) >= banks._found(engine, asked, 1)


def bank_view(path):
    return banks.ServedBank.open(path, load()[0], FINGERPRINT).view


def test_drawn_states_are_like_encoded_ones():
    model, tokenizer, _ = load()
    drawn = generate.needles(tokenizer, 80, 3, CHUNK)
    documents = sorted((d for d, _, _ in drawn), key=lambda document: document.number)
    likeness = generate.Likeness.of(model, tokenizer, documents)
    torch.manual_seed(0)
    layer_number = model.config.router_layers[0]
    drawn = likeness.draw(layer_number, 20_000)
    mean, factor = likeness.moments[layer_number, "v"]
    rows = drawn.v.float().flatten(1)
    spread = (factor @ factor.T).diagonal()
    assert ((rows.mean(0) - mean) / spread.sqrt()).abs().max() < 0.05
    assert (rows.var(0) / spread - 1).abs().max() < 0.1


def test_two_ranks_find_what_one_finds():
    def rank(form, first, chunks):
        return layer.Rank(form, first, chunks, 300, 16, 2, (3,), 1)

    for form in layer.FORMS:
        halves = [layer._runs(rank(form, first, 150)) for first in (0, 150)]
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
    with layer._started("int8", 1, 1, SIZES) as ends:
        row = layer._row("int8", ends, 5, 1, SIZES)
        assert row["search_ms"] > 0 and row["keys_gb"] >= 0 and row["question_tokens"] == 5
        ends[0].send(("nothing", 5))  # it dies of what it does not know
        with pytest.raises(RankError, match="rank 0 of 1 died"):
            layer._ask(ends, "search", 5)


def test_a_process_that_dies_is_named():
    with pytest.raises(RankError, match="process of exit died"):
        process.in_process(os._exit, 3, threads=1)


def test_floors_read_and_multiply_everything():
    keys = torch.arange(24.0).view(6, 4)
    [total] = read_all([keys])()
    assert int(total) == int(keys.flatten().view(torch.int64).sum())
    odd = torch.arange(5, dtype=torch.int8)
    assert int(read_all([odd])()[0]) == 10
    query, calls = torch.randn(3, 4), []
    real = torch.mm
    run = multiply([keys, keys], query, at_once=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "mm", lambda a, b, out: calls.append(len(a)) or real(a, b, out=out))
        run()
    assert calls == [5, 5, 2]
    row = against_floor({"search": [5.0, 9.0, 6.0], "read": [2.0, 1.0, 3.0], "gemm": [1.5, 2.5]}, 2)
    assert row["floor_ms"] == 3.0 and row["route_ms"] == 6.0 and row["ratio"] == 2.0
    assert row["route_best_ms"] == 5.0


@torch.inference_mode()
def test_the_dense_peer_is_the_backbone():
    model, tokenizer, _ = load()
    tokens = torch.randint(tokenizer.vocab_size, (70,), generator=torch.Generator().manual_seed(1))
    view = encode_in_memory(model, tokenizer, tiny_documents()).restricted(
        torch.zeros(len(tiny_documents()), dtype=torch.bool)
    )
    everything = torch.ones(70, dtype=torch.bool)
    given = torch.tensor([0, 70]), torch.arange(70), everything, torch.tensor([0]), view
    last = model.prefill(tokens, *given).last
    torch.testing.assert_close(peers.dense(model, tokens), model.logits(last[-1]))


def test_wrong_input_is_named(capsys, tmp_path):
    assert main(["bench", "memory", "--parts", "scale", "tea"]) == 2
    assert "'tea': give some of scale" in capsys.readouterr().err
    assert main(["bench", "kernels", "--parts", "scale"]) == 2
    assert main(["bench", "train", "--quick"]) == 2
    with pytest.raises(ValueError, match=r"it has no \*.jsonl"):
        list(banks._corpora(tmp_path))
