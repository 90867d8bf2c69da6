"""Word search beside the router: fused scores by hand, word counts that follow a bank."""

import math

import numpy as np
import pytest
import torch

from data_pipeline.bm25 import BM25
from msa_train.errors import BankError, MissingDependencyError
from msa_train.memory.bank.build import add_documents
from msa_train.memory.bank.documents import DOCUMENTS, StoredDocument
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.writer import BankWriter
from msa_train.memory.search import hybrid
from msa_train.memory.search.hybrid import WordIndexes, WordScores, fused_scores, sample
from msa_train.memory.search.live import LiveBank
from msa_train.memory.search.loader import bank_view
from tests.memory.tiny import FINGERPRINT, TEXTS, tiny_model, tiny_tokenizer

QUESTION = "Which crane sleeps by the lighthouse?"


def z_score(value, those):
    mean = sum(those) / len(those)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in those) / len(those))
    return (value - mean) / deviation if deviation else 0.0


def test_fused_scores_add_z_scores():
    draw = np.random.default_rng(0)
    votes, sampled, words, all_words = (
        torch.from_numpy(draw.normal(size=(3, size))) for size in (9, 5, 9, 40)
    )
    words[2] = all_words[2] = 0  # no word is known: the vote decides alone
    found = fused_scores(votes, sampled, words, all_words)
    for row in range(3):
        expected = [
            z_score(vote, sampled[row].tolist()) + z_score(word, all_words[row].tolist())
            for vote, word in zip(votes[row].tolist(), words[row].tolist(), strict=True)
        ]
        assert found[row].tolist() == pytest.approx(expected)
    one, none = votes[0, :1], votes[0, :0]
    assert fused_scores(one, one, one, one).tolist() == [0]
    assert fused_scores(none, none, none, none).tolist() == []


@pytest.mark.parametrize("count", [0, 1, 128, 129, 1000])
def test_a_sample_is_spread_over_all_places(count):
    places = torch.arange(count) * 3
    found = sample(places)
    assert len(found) == min(count, 128) and set(found.tolist()) <= set(places.tolist())
    assert found.tolist() == sorted(set(found.tolist()))
    if count > 128:
        gaps = found.diff() // 3
        assert found[0] == 0 and int(gaps.max() - gaps.min()) <= 1


def by_hand(view, question):
    """{number: score} of BM25 over the documents that the view finds, and nothing else."""
    numbers = view.numbers[view.findable].tolist()
    shown = [view.documents[number] for number in numbers]
    texts = [
        each.text if each.text.startswith(each.title) else f"{each.title}\n{each.text}"
        for each in shown
    ]
    scores = next(BM25.of(texts).scores(np.arange(len(texts)), [question]))
    return dict(zip(numbers, scores.tolist(), strict=True))


def found(view, question=QUESTION):
    scores = WordScores.of(view, question)
    return dict(zip(view.numbers[scores.places].tolist(), scores.scores.tolist(), strict=True))


def test_words_of_a_bank_follow_its_changes_and_counts_are_made_once(path, monkeypatch):
    counted, count = [], hybrid._texts
    monkeypatch.setattr(
        hybrid, "_texts", lambda *given: counted.append(1) or count(*given), raising=True
    )
    live = LiveBank(path, tiny_model(), FINGERPRINT, words=WordIndexes())
    before = live.view
    assert found(before) == by_hand(before, QUESTION) and max(found(before).values()) > 0
    more = [
        StoredDocument(0, "It sleeps standing.", "a", "Lighthouse"),
        StoredDocument(0, "Crane, asleep.", "b", "Crane"),
    ]
    add_documents(path, tiny_model(), tiny_tokenizer(), more, FINGERPRINT)
    with BankWriter(path, "remove") as writer:
        writer.remove([1000])  # about the lighthouse
    after = live.view
    assert len(counted) == 2, "a segment that is there already is not counted again"
    assert found(after) == pytest.approx(by_hand(after, QUESTION)) and 1000 not in found(after)
    assert found(before) == by_hand(before, QUESTION) and 1000 in found(before)
    titled = int(after.numbers[-2])
    assert found(after)[titled] > 0 and found(after, "lighthouse")[titled] > 0
    live.close()


def test_a_restricted_view_searches_its_own_documents_only(changed):
    bank = BankSnapshot.open(changed)
    view = bank_view(bank, tiny_model().config.router, words=WordIndexes().of(bank))
    allowed = bank.numbers % 2 == 0
    some = view.restricted(allowed)
    words = found(some, "Document tells of 16")
    assert words == pytest.approx(by_hand(some, "Document tells of 16"))
    assert set(words) == set(bank.numbers[allowed & bank.live].tolist())
    best = WordScores.of(some, "Document tells of 16").best(3)
    ranked = sorted(words, key=lambda number: (-words[number], number))
    assert view.numbers[best].tolist() == [each for each in ranked if words[each] > 0][:3]
    nothing = view.restricted(torch.zeros(len(bank.numbers), dtype=torch.bool))
    assert WordScores.of(nothing, QUESTION).best(3).tolist() == []
    assert WordScores.of(view, "xyzzy, the?").best(3).tolist() == []


def test_texts_that_were_changed_on_disk_are_refused(path):
    file = next(path.glob(f"segments/*/{DOCUMENTS}"))
    content = file.read_bytes()
    assert content.count(TEXTS[0].encode()) == 1
    file.write_bytes(content.replace(TEXTS[0].encode(), TEXTS[0].replace("4", "5").encode()))
    with pytest.raises(BankError, match="was changed"):
        WordIndexes().of(BankSnapshot.open(path))


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(hybrid, "find_spec", lambda name: None if name == "Stemmer" else name)
    with pytest.raises(MissingDependencyError, match=r"PyStemmer.*msa-train\[hybrid\]"):
        WordIndexes()
