"""Datasets as sources: what is asked, what stands in a bank and how it counts."""

import json
import pickle
from collections import Counter

import numpy as np
import pytest

from data_pipeline.dataset import Passage, Question, write_dataset
from data_pipeline.errors import DataError
from data_pipeline.sources.base import NumberConfig, SourceInputs
from data_pipeline.sources.dataset_config import DatasetConfig, NegativesConfig
from data_pipeline.sources.dataset_tables import (
    prepare,
    shown_text,
)
from data_pipeline.sources.datasets import DatasetSource
from tests.data_pipeline.sources.cities import CITIES, passages


def test_a_bank_holds_what_its_questions_need(make, rng):
    bank = make().bank(rng, 8, 3)
    numbers = [document.number for document in bank.documents]
    assert len(numbers) == 8 and numbers == sorted(set(numbers))
    texts = {document.number: document.text for document in bank.documents}
    assert len(bank.queries) == 3
    for query in bank.queries:
        (positive,) = query.positives
        assert query.answers[0] in texts[positive] and not query.steps
        city = query.question.removeprefix("On which river lies ").rstrip("?")
        assert texts[positive].startswith(f"{city}\n{city} is a city.")


def test_equal_generators_give_equal_banks_and_a_copy_too(make):
    source = make(tasks={"given": 1, "inverse_cloze": 1, "title": 1, "text": 1})
    copy = pickle.loads(pickle.dumps(source))
    banks = [s.bank(np.random.default_rng(4), 9, 8, place=2) for s in (source, source, copy)]
    assert banks[0] == banks[1] == banks[2]


def test_every_question_is_asked_before_any_is_asked_again(make, rng):
    source = make()
    asked = [q.id for place in range(5) for q in source.bank(rng, 6, 2, place=place).queries]
    assert Counter(asked) == {f"q{i}": 1 for i in range(10)}
    again = [q.id for place in range(5, 10) for q in source.bank(rng, 6, 2, place=place).queries]
    assert sorted(again) == sorted(asked) and again != asked


def test_a_cap_chooses_questions_at_random(make, rng):
    def asked(seed):
        source = make(questions=3, seed=seed)
        return {q.id for place in range(9) for q in source.bank(rng, 6, 1, place=place).queries}

    assert len(asked(0)) == len(asked(1)) == 3 and asked(0) != asked(1)


def test_documents_that_may_answer_are_masked(make, rng):
    """`twin` says Tiber too: it is no negative of the question about Rome."""
    source = make()
    for place in range(10):
        bank = source.bank(rng, 11, 1, place=place)
        twin = next(d.number for d in bank.documents if d.id == "twin")
        (query,) = bank.queries
        assert query.masked == ((twin,) if query.answers == ("Tiber",) else ())


def test_one_of_several_alternatives_is_asked_for_and_the_others_are_masked(tmp_path, tokenizer):
    texts = [Passage(f"p{i}", "", f"word {i}.") for i in range(6)]
    asked = Question("q", "which?", (), ("p1", "p4"), any_of=True)
    write_dataset(tmp_path / "any", texts, [("train", asked)])
    config = DatasetConfig(str(tmp_path / "any"))
    tables = prepare(config, "train", 64, tokenizer, tmp_path / "prepared")
    source, found = DatasetSource("any", config, tables, NumberConfig()), Counter()
    for seed in range(30):
        bank = source.bank(np.random.default_rng(seed), 6, 1)
        names = {document.number: document.id for document in bank.documents}
        (query,) = bank.queries
        (positive,), (masked,) = query.positives, query.masked
        assert {names[positive], names[masked]} == {"p1", "p4"}
        found[names[positive]] += 1
    assert min(found.values()) > 5


def test_equal_texts_are_no_negatives_of_each_other(tmp_path, tokenizer, rng):
    twins = [Passage(f"p{i}", "", f"word {i // 2}.") for i in range(4)]
    write_dataset(tmp_path / "twins", twins, [("train", Question("q", "0?", (), ("p0",)))])
    config = DatasetConfig(str(tmp_path / "twins"))
    tables = prepare(config, "train", 64, tokenizer, tmp_path / "prepared")
    bank = DatasetSource("twins", config, tables, NumberConfig()).bank(rng, 4, 1)
    (masked,) = bank.queries[0].masked
    assert next(d.id for d in bank.documents if d.number == masked) == "p1"


def test_hard_negatives_come_before_random_documents(make, rng):
    """BM25 likes `Rome` for the question about Rome; another city only by chance."""
    found = Counter()
    source = make(split="dev", negatives=NegativesConfig(count=1, bm25=0))
    for _ in range(20):
        found.update(d.id for d in source.bank(rng, 3, 1).documents)
    assert found == {"c0": 20, "c1": 20, "c5": 20}, "the one that the dataset names"


def test_mined_negatives_are_candidates(folder, make, rng, tmp_path):
    mined = tmp_path / "mined.jsonl"
    mined.write_text(json.dumps({"id": "q0", "negatives": ["c9"]}) + "\n")
    source = make(questions=10, negatives=NegativesConfig(1, 0, str(mined)))
    for place in range(10):
        bank = source.bank(rng, 2, 1, place=place)
        if bank.queries[0].id == "q0":
            assert {d.id for d in bank.documents} == {"c0", "c9"}
    mined.write_text(json.dumps({"id": "q0", "negatives": ["nowhere"]}) + "\n")
    with pytest.raises(DataError, match="'nowhere' is not in"):
        make(negatives=NegativesConfig(1, 0, str(mined)))
    mined.write_text("{}\n")
    with pytest.raises(DataError, match=r"mined\.jsonl, line 1"):
        make(negatives=NegativesConfig(1, 0, str(mined)))


def test_a_chain_keeps_the_order_of_its_steps(make, rng):
    bank = make(split="dev").bank(rng, 5, 1)
    numbers = {document.id: document.number for document in bank.documents}
    assert bank.queries[0].steps == ((numbers["c1"],), (numbers["c0"],))


def test_an_inverse_cloze_takes_its_sentence_out(make):
    source = make(tasks={"inverse_cloze": 1}, made_held_out_share=0, document_tokens=256)
    removed = asked = 0
    for seed in range(60):
        bank = source.bank(np.random.default_rng(seed), 4, 1, place=seed)
        texts = {document.number: document.text for document in bank.documents}
        for query in bank.queries:
            assert not query.answers
            asked += 1
            removed += query.question not in texts[query.positives[0]]
    assert asked > 40 and 0.6 < removed / asked < 1, "a repeated sentence may stay as well"


def test_a_title_asks_for_its_passage_without_it(make, rng):
    bank = make(tasks={"title": 1}, made_held_out_share=0).bank(rng, 11, 4)
    texts = {document.number: document.text for document in bank.documents}
    assert {query.question for query in bank.queries} < set(CITIES)
    for query in bank.queries:
        assert texts[query.positives[0]].startswith(f"{query.question} is a city.")


def test_plain_texts_stand_beside_the_bank(make, rng):
    bank = make(tasks={"text": 3, "given": 1}, made_held_out_share=0).bank(rng, 4, 4)
    assert len(bank.texts) == 3 and len(bank.queries) == 1
    assert set(bank.texts) <= {shown_text(p.title, p.text) for p in passages()}


def test_made_questions_of_training_and_held_out_share_no_passage(make, rng):
    def asked(held_out):
        source = make(held_out, tasks={"title": 1}, made_held_out_share=0.4)
        banks = [source.bank(rng, 11, 2, place=place) for place in range(10)]
        return {query.question for bank in banks for query in bank.queries}

    assert asked(True) | asked(False) == set(CITIES) and not asked(True) & asked(False)


def test_a_missing_dataset_and_an_impossible_task_are_named(make, folder, tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"questions\.test\.jsonl"):
        make(split="test")
    with pytest.raises(DataError, match=r"tasks\.title.*to hold out"):
        make(True, tasks={"title": 1}, made_held_out_share=0)


def test_a_stage_may_only_shorten_documents(folder, tokenizer, tmp_path):
    config = DatasetConfig(str(folder), document_tokens=64)
    stages = [DatasetSource.for_stage(config, tokens, None) for tokens in (None, 0, 32, 64, 256)]
    assert [stage.document_tokens for stage in stages] == [64, 64, 32, 64, 64]
    assert stages[0] == stages[3] != stages[2], "equal ones share their tables"
    inputs = SourceInputs("cities", tokenizer, NumberConfig(), tmp_path)
    whole, short = (DatasetSource.make(stage, inputs) for stage in stages[1:3])
    assert whole.name == "cities" and len(short) > len(whole)


CHINESE = "战国无双是光荣开发的游戏。本作以三大故事为主轴，分别是以武田信玄等人为主。好。"


def of_texts(folder, tokenizer, texts, **settings):
    """A source whose questions are made of its texts."""
    write_dataset(folder / "set", [Passage(f"p{i}", "", t) for i, t in enumerate(texts)], [])
    config = DatasetConfig(
        str(folder / "set"), tasks={"inverse_cloze": 1}, made_held_out_share=0.0, **settings
    )
    tables = prepare(config, None, 256, tokenizer, folder / "prepared")
    return DatasetSource("made", config, tables, NumberConfig())


def test_a_sentence_of_a_script_without_spaces_asks_for_its_passage(tmp_path, tokenizer, rng):
    source = of_texts(tmp_path, tokenizer, [CHINESE, CHINESE[::-1]])
    asked = {q.question for q in source.bank(rng, 2, 2).queries}
    assert len(asked) == 2 and "好。" not in asked
    assert asked & {CHINESE[:13], CHINESE[13:-2]}


def test_a_bank_without_a_sentence_that_asks_goes_on_to_one(tmp_path, tokenizer):
    short = [f"Short {i}." for i in range(30)]
    source = of_texts(tmp_path, tokenizer, [*short, "It rained on the harbour. We stayed in."])
    for place in range(31):
        (query,) = source.bank(np.random.default_rng(place), 4, 1, place=place).queries
        assert query.question == "It rained on the harbour."


def test_banks_without_a_question_are_refused_with_the_reason(tmp_path, tokenizer, rng, make):
    source = of_texts(tmp_path, tokenizer, ["One sentence of some words alone.", "Short. Text."])
    with pytest.raises(
        DataError, match=r"data.datasets.made: nothing can be asked .*two sentences"
    ):
        source.bank(rng, 2, 2)
    with pytest.raises(DataError, match="passages fit in a bank of 1 documents: raise "):
        make(split="dev").bank(rng, 1, 1)
