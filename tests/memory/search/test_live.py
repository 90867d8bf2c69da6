"""A bank that changes while it is asked: the newest state, and old views as they were."""

import shutil

import pytest
import torch

from msa_train.errors import BankError
from msa_train.memory.bank.build import add_documents
from msa_train.memory.bank.documents import StoredDocument
from msa_train.memory.bank.snapshot import GenerationGoneError
from msa_train.memory.bank.writer import BankWriter
from msa_train.memory.search.live import LiveBank
from msa_train.memory.search.loader import BankLoader
from msa_train.memory.search.settings import TierSettings
from tests.memory.building import answered, tiny_bank
from tests.memory.tiny import FINGERPRINT, tiny_model, tiny_tokenizer


def more(count):
    texts = (f"Another document, number {i}, about cranes." for i in range(count))
    return [StoredDocument(i, text, f"more{i}") for i, text in enumerate(texts)]


def test_a_bank_built_again_in_its_place_is_a_new_one(path):
    live = LiveBank(path, tiny_model(), FINGERPRINT)
    assert len(live.view) == 7
    shutil.rmtree(path)
    tiny_bank(path, more(3))
    assert len(live.view) == 3 and live.view.documents[1].id == "more1"
    live.close()


def test_a_live_bank_shows_commits_to_the_next_question_and_keeps_old_views(path):
    live = LiveBank(path, tiny_model(), FINGERPRINT)
    before = live.view
    states, documents = answered(before)
    segment = live.bank.segments[0]
    added = add_documents(path, tiny_model(), tiny_tokenizer(), more(3), FINGERPRINT)
    assert added == 3 and len(live.view) == 10
    assert live.bank.segments[0] is segment, "what did not change is not opened again"
    with BankWriter(path, "remove") as writer:
        writer.remove([2])
        writer.compact()
    assert len(live.view) == 9 and not live.view.knows(2)
    again, same = answered(before)
    assert torch.equal(again, states) and torch.equal(same, documents)
    assert before.knows(2) and before.documents[2].text.startswith("The code of the harbour")
    live.close()


class LateRanks:
    """Come too late for `late` generations."""

    def __init__(self, late):
        self.late, self.asked = late, 0

    def searcher(self, bank, router):
        self.asked += 1
        if self.asked <= self.late:
            raise GenerationGoneError("compacted")
        return BankLoader(TierSettings()).searcher(bank, router)


def test_a_bank_is_opened_again_where_others_came_too_late(path, monkeypatch):
    ranks = LateRanks(2)
    live = LiveBank(path, tiny_model(), FINGERPRINT, ranks=ranks)
    assert ranks.asked == 3 and len(live.view) == 7
    live.close()
    monkeypatch.setattr("msa_train.memory.bank.snapshot._PATIENCE_S", 0)
    with pytest.raises(GenerationGoneError, match="compacted"):
        LiveBank(path, tiny_model(), FINGERPRINT, ranks=LateRanks(99))


def test_a_bank_that_is_gone_or_another_model_is_refused(path):
    with pytest.raises(BankError, match="built by another model"):
        LiveBank(path, tiny_model(), FINGERPRINT | {"model": "c" * 64})
    live = LiveBank(path, tiny_model(), FINGERPRINT)
    shutil.rmtree(path)
    with pytest.raises(BankError, match="is no memory bank any more"):
        _ = live.view
    live.close()
