"""Generated banks are whole, and what was drawn is like what was encoded."""

import torch

from msa_train.bench.memory import generate
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.verify import verify_bank
from tests.bench.memory.tiny_sizes import CHUNK, load
from tests.memory.building import encode_in_memory
from tests.memory.tiny import FINGERPRINT


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
