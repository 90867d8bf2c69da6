"""What may be given as a memory, and what may not."""

from dataclasses import replace

import pytest

from data_pipeline.errors import DataError
from msa_train.errors import BankError, ConfigError
from msa_train.interop.export import load_export
from msa_train.interop.huggingface.memories import encoded, open_memory
from msa_train.interop.huggingface.origin import Origin
from msa_train.memory.bank.snapshot import BankSnapshot
from tests.interop.huggingface.folders import imported, its_bank, trained_here
from tests.memory.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def given():
    return load_export(trained_here()).model, Origin.of(trained_here())


def test_banks_and_views_are_opened(given):
    for memory in (its_bank(), str(its_bank()), BankSnapshot.open(its_bank())):
        view = open_memory(memory, *given)
        assert len(view) == 7 and view.documents[17].number == 17
        assert open_memory(view, *given) is view


def test_a_memory_without_documents_is_refused(given):
    view = open_memory(its_bank(), *given)
    with pytest.raises(BankError, match="no document to answer from"):
        open_memory(view.restricted(view.numbers < 0), *given)


def test_long_texts_are_split_under_their_place():
    view = encoded(["Rain.", "Cranes sleep standing. " * 600], tiny_model(), tiny_tokenizer())
    assert len(view) > 2
    found = [view.documents[number] for number in range(len(view))]
    assert {document.id for document in found} == {"0", "1"}
    assert "".join(document.text for document in found[1:]).count("Cranes") == 600


def test_what_is_of_another_model_is_refused(given):
    other = load_export(imported("qwen3")[1]).model, Origin.of(imported("qwen3")[1])
    for memory in (its_bank(), BankSnapshot.open(its_bank())):
        with pytest.raises(BankError, match="was built by another model: its config fingerprint"):
            open_memory(memory, *other)
    view = open_memory(its_bank(), *given)
    for wrong in (replace(view, heads=4), replace(view, router=replace(view.router, top_k=9))):
        with pytest.raises(BankError, match="of a bank of another model"):
            open_memory(wrong, *given)


@pytest.mark.parametrize(
    ("memory", "error", "words"),
    [
        ("The harbour is closed.", BankError, "no such folder; a text alone goes into a list"),
        (__file__, BankError, "is a file; give a bank's folder"),
        ([], BankError, "at least one document"),
        (5, ConfigError, "memory is a int: give"),
        ({"a": "b"}, ConfigError, "memory is a dict: give"),
        (["a", None], ConfigError, r"memory\[1\] is a NoneType"),
        (["\ud800"], DataError, "surrogate"),
    ],
    ids=str,
)
def test_what_is_no_memory_is_refused(given, memory, error, words):
    with pytest.raises(error, match=words):
        open_memory(memory, *given)
