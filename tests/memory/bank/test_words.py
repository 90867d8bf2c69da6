"""Words in documents: those that a loop over every title and text finds."""

import random
from dataclasses import replace

import pytest
import torch

from msa_train.errors import BankError
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.words import with_words
from msa_train.memory.bank.writer import BankWriter
from tests.memory.building import build, document, flip

PIECES = ["Crane", "crane", "cranes", "a.b", "axb", "(x", "\\d", "東京", "ÉTÉ", "été", "50%", "\n"]


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """40 documents in several segments; some are removed."""
    path, rng = tmp_path_factory.mktemp("words") / "bank", random.Random(0)

    def some(most):
        return " ".join(rng.choices(PIECES, k=rng.randrange(most)))

    build(path, [replace(document(n), title=some(3), text=some(6) or "-") for n in range(40)])
    with BankWriter(path, "remove") as writer:
        writer.remove([3, 17])
    return BankSnapshot.open(path)


def by_loop(bank, words):
    return [
        each.number
        for each in bank
        if all(
            word.casefold() in each.title.casefold() or word.casefold() in each.text.casefold()
            for word in words.split()
        )
    ]


@pytest.mark.parametrize(
    "words",
    [
        *PIECES[:-1],
        "",
        " \n",
        "CRANE été",
        "a.b 東 %",
        "rane (x",
        "nobody",
        "crane nobody",
        "b a.",
        "x\0",
    ],
)
def test_finds_what_a_loop_finds(bank, words):
    found = with_words(bank, words)
    assert found.shape == bank.numbers.shape and found.dtype == torch.bool
    assert bank.numbers[found].tolist() == by_loop(bank, words)
    assert bank.numbers[with_words(bank, words)].tolist() == by_loop(bank, words)  # remembered


def test_stops_when_told(bank):
    def going_on():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        with_words(bank, "never asked before", going_on)


def test_changed_texts_are_refused(tmp_path):
    path = tmp_path / "bank"
    build(path, [document(1)])
    (file,) = path.rglob("documents.arrow")
    bank = BankSnapshot.open(path)
    flip(file)
    with pytest.raises(BankError, match="was changed"):
        with_words(bank, "crane")
