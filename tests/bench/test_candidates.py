"""Certified searches in a bank's own keys: measured, and with full precision's result."""

import pytest

from msa_train.bench.candidates import certified_candidates
from msa_train.errors import ConfigError
from msa_train.memory.bank.build import build_bank
from msa_train.memory.bank.snapshot import BankSnapshot
from tests.memory.tiny import FINGERPRINT, tiny_documents, tiny_model, tiny_tokenizer


@pytest.fixture
def bank(tmp_path):
    build_bank(
        tmp_path / "bank", tiny_model(), tiny_tokenizer(), tiny_documents(), fingerprint=FINGERPRINT
    )
    return BankSnapshot.open(tmp_path / "bank")


def test_candidates_of_every_layer_kind_and_form(bank):
    asked = ["which one?", "where is the harbour?", "what of cranes?"]
    rows = certified_candidates(tiny_model(), tiny_tokenizer(), bank, asked)
    kinds = {(row["layer"], row["keys"], row["form"]) for row in rows}
    forms = [(keys, form) for keys in ("trained", "random") for form in ("int8", "fp8")]
    layers = tiny_model().config.router_layers
    assert kinds == {(layer, *form) for layer in layers for form in forms}
    for row in rows:
        assert row["questions"] == 3 and row["as_full_precision"]
        assert row["top_k"] <= row["candidates_mean"] <= row["candidates_max"] <= row["documents"]


def test_scores_that_are_no_single_product_are_refused(bank):
    model = tiny_model("none", head_reduce="max")
    with pytest.raises(ConfigError, match="no single dot product"):
        certified_candidates(model, tiny_tokenizer(), bank, ["which?"])
