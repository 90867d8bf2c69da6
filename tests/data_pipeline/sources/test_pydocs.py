import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.protocol import document_pieces
from data_pipeline.sources.pydocs import PydocsConfig, split_of, training_texts, truncate
from data_pipeline.sources.stdlib import docstrings


def held_out(pydocs):
    return [e for e in pydocs.entries if split_of(e.name, pydocs.config) == "held_out"]


def test_most_documents_are_asked_about(pydocs):
    documents = len(pydocs.entries)
    assert documents > 3000
    assert sum(bool(entry.questions) for entry in pydocs.entries) > 0.7 * documents
    assert sum(len(entry.questions) for entry in pydocs.entries) > documents
    assert 0.05 < len(held_out(pydocs)) / documents < 0.15
    whole = {item.name: item.text for item in docstrings()}
    cut = sum(not entry.text.endswith(whole[entry.name]) for entry in pydocs.entries)
    assert 0 < cut < 0.2 * documents


def test_splits_do_not_depend_on_the_other_documents():
    config = PydocsConfig(held_out_share=0.5)
    assert split_of("json.dumps", config) == split_of("json.dumps", config)
    names = [item.name for item in docstrings()]
    held_out = {name for name in names if split_of(name, PydocsConfig()) == "held_out"}
    more = {name for name in names if split_of(name, config) == "held_out"}
    assert held_out < more
    assert split_of("json.dumps", PydocsConfig(held_out_share=0)) == "train"
    assert len(training_texts(PydocsConfig())) == len(names) - len(held_out)


def test_a_training_bank_holds_training_documents_and_answers_its_questions(pydocs, rng):
    bank = pydocs.bank(rng, 40, 12)
    names = {document.number: document.id for document in bank.documents}
    assert len(bank.documents) == 40 and len(bank.queries) == 12
    assert all(split_of(name, pydocs.config) == "train" for name in names.values())
    assert len({query.positives for query in bank.queries}) == 12
    for query in bank.queries:
        assert query.answers == (names[query.positives[0]],)


def test_half_of_the_others_come_from_the_same_modules(pydocs):
    module = {entry.name: entry.module for entry in pydocs.entries}
    near = total = 0
    for seed in range(5):
        bank = pydocs.bank(np.random.default_rng(seed), 40, 10)
        asked = {query.answers[0] for query in bank.queries}
        modules = {module[name] for name in asked}
        others = [d.id for d in bank.documents if d.id not in asked]
        near += sum(module[name] in modules for name in others)
        total += len(others)
    assert 0.5 <= near / total < 0.8


def test_the_whole_bank_asks_the_held_out_documents(pydocs, rng):
    bank = pydocs.whole_bank(rng)
    assert len(bank.documents) == len(pydocs.entries)
    assert len(bank.queries) == sum(len(entry.questions) for entry in held_out(pydocs))
    names = {document.number: document.id for document in bank.documents}
    for query in bank.queries:
        assert query.answers == (names[query.positives[0]],)
        assert split_of(query.answers[0], pydocs.config) == "held_out"


def test_a_bank_depends_on_its_generator_alone(pydocs):
    banks = [pydocs.bank(np.random.default_rng(5), 20, 5) for _ in range(2)]
    assert banks[0] == banks[1]


def test_a_bank_beyond_the_training_documents_is_refused(pydocs, rng):
    with pytest.raises(DataError, match="a bank of 50000 documents"):
        pydocs.bank(rng, 50_000)


def test_documents_stay_within_their_length(pydocs, tokenizer):
    for entry in pydocs.entries:
        pieces = document_pieces(99_999, entry.text)
        assert len(tokenizer.encode_pieces(pieces).tokens) == entry.tokens <= 256


def test_text_is_cut_after_the_last_word_that_fits(tokenizer):
    text = "alpha beta\n\ngamma delta epsilon zeta eta theta " * 5
    cut, tokens = truncate(tokenizer, text, 40, 7)
    assert tokens <= 40
    assert text.startswith(cut) and text[len(cut)].isspace() and not cut[-1].isspace()
    following = text[: len(cut) + 1 + len(text[len(cut) :].split()[0])].rstrip()
    assert len(tokenizer.encode_pieces(document_pieces(7, following)).tokens) > 40
    assert truncate(tokenizer, "short", 40, 7)[0] == "short"
    assert truncate(tokenizer, "x" * 500, 40, 7)[0] == "", "not even one word fits"


@pytest.mark.parametrize(
    "settings",
    [{"held_out_share": 2.0}, {"near_share": -1.0}, {"document_tokens": 8}, {"questions": 0}],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(DataError, match=rf"data\.pydocs\.{next(iter(settings))}"):
        PydocsConfig(**settings)
