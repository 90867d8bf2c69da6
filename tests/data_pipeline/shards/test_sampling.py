import pickle
from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.schema import Document, Query
from data_pipeline.settings import CorpusStage, StageData, TrainingCorpus
from data_pipeline.shards.sampling import SampleBuilder, TokenBudget, source_pools
from data_pipeline.sources.base import DrawnBank
from data_pipeline.sources.pydocs import split_of


def only(name, samples=5, **data):
    return CorpusStage(StageData(weights={name: 1.0}, **data), samples=samples)


@pytest.fixture
def build(config, tokenizer, tmp_path):
    def builder(*stages, batch_samples=1, **settings):
        corpus = TrainingCorpus(replace(config, **settings), stages, batch_samples)
        return SampleBuilder(corpus, tokenizer, tmp_path)

    return builder


def test_a_sample_depends_on_seed_and_index_alone(corpus, tokenizer, samples, tmp_path):
    other = replace(corpus, data=replace(corpus.data, workers=9))
    other = SampleBuilder(other, tokenizer, tmp_path)
    for i in reversed(range(len(other))):
        assert other.build(i) == samples[i]
    assert len({sample.to_bytes() for sample in samples}) == len(samples)


def test_another_seed_gives_other_samples(build, samples):
    assert build(only("niah"), seed=1).build(0) not in samples


def test_held_out_samples_are_others(corpus, tokenizer, samples, tmp_path):
    held_out = SampleBuilder(corpus, tokenizer, tmp_path, held_out=True)
    ours = {held_out.build(i).to_bytes() for i in range(len(held_out))}
    assert not ours & {sample.to_bytes() for sample in samples}
    documents = {d.id for s in samples if s.source == "pydocs" for d in s.documents}
    others = [held_out.build(i) for i in range(len(held_out))]
    others = {d.id for s in others if s.source == "pydocs" for d in s.documents}
    config = corpus.data.pydocs
    assert documents and {split_of(name, config) for name in documents} == {"train"}
    assert others and {split_of(name, config) for name in others} == {"held_out"}


def test_stages_and_sources_follow_the_settings(config, builder, samples):
    assert [builder.stage(i) for i in (0, 5, 6, 11, 12, 23)] == [0, 0, 1, 1, 2, 2]
    assert {sample.source for sample in samples} == {"niah", "pydocs"}
    for sample in samples:
        expected = getattr(config.banks, sample.source)
        assert len(sample.documents) == expected.documents
        assert 0 < len(sample.contexts) <= expected.contexts
    bare = next(s for s in samples[:6] if s.source == "niah")
    full = next(s for s in samples[12:] if s.source == "niah")
    length = [np.mean([len(d.text) for d in sample.documents]) for sample in (bare, full)]
    assert 1.5 * length[0] < length[1]


def test_a_source_without_weight_is_not_drawn(build):
    builder = build(only("niah"))
    assert {builder.build(i).source for i in range(5)} == {"niah"}


def test_banks_keep_a_budget_of_tokens(build, tokenizer):
    builder = build(only("niah", memory_tokens=2000), only("pydocs", memory_tokens=2000))
    budget = TokenBudget(tokenizer, 100_000)
    for i in range(len(builder)):
        sample = builder.build(i)
        assert 1600 < budget.tokens(sample.documents) <= 2000
        numbers = {document.number for document in sample.documents}
        assert all(set(context.positives) <= numbers for context in sample.contexts)


def test_a_copy_that_begins_elsewhere_builds_the_same(build):
    """As a worker does that is handed a later shard first."""
    stages = (
        only("niah", 2, memory_tokens=1500, tasks={"single": 1.0}),
        only("niah", 2, memory_tokens=1500, tasks={"multi_query": 1.0}, document_tokens=0),
    )
    builder = build(*stages)
    copy = pickle.loads(pickle.dumps(builder))
    forward = [builder.build(i) for i in range(4)]
    backward = [copy.build(i) for i in reversed(range(4))]
    assert forward == backward[::-1]
    again = pickle.loads(pickle.dumps(builder))
    assert [again.build(i) for i in range(4)] == forward


def test_questions_that_a_budget_has_no_room_for_are_left_out(build, tokenizer):
    sample = build(only("niah", memory_tokens=300)).build(0)
    assert 0 < len(sample.contexts) < 8
    assert TokenBudget(tokenizer, 100).tokens(sample.documents) <= 300
    with pytest.raises(DataError, match="memory_tokens is 40, too few"):
        build(only("niah", memory_tokens=40)).build(0)


def test_what_a_budget_leaves_out_is_named_by_no_question(tokenizer):
    documents = tuple(Document(n, f"the text of document number {n}") for n in range(9))
    others = tuple(range(1, 9))
    bank = DrawnBank(documents, (Query("Which?", ("0",), (0,), masked=others, hard=others),))
    tokens = TokenBudget(tokenizer, 100).tokens(documents[:4])
    kept = TokenBudget(tokenizer, 100).within(bank, tokens, np.random.default_rng(0))
    left = [document.number for document in kept.documents]
    assert 1 < len(left) < 9
    assert [*kept.queries[0].positives, *kept.queries[0].hard] == left
    assert kept.queries[0].masked == kept.queries[0].hard


def test_a_stage_of_tokens_has_so_many(build, tokenizer):
    stage = replace(only("niah", memory_tokens=1000), samples=None, tokens=24_000, epochs=2)
    builder = build(stage, only("niah", 3), batch_samples=4)
    assert builder.samples[0] % 4 == 0 and builder.samples[1] == 3
    budget = TokenBudget(tokenizer, 100_000)
    total = sum(budget.tokens(builder.build(i).documents) for i in range(builder.samples[0]))
    assert total * 2 == pytest.approx(24_000, rel=0.2)


def test_a_bank_with_nothing_to_learn_is_refused(build, monkeypatch):
    builder = build(only("niah"))
    empty = DrawnBank((Document(1, "a text"),), ())
    for source in builder._sources[0].values():
        monkeypatch.setattr(source, "bank", lambda *_: empty)
    with pytest.raises(
        DataError, match=r"stages\[0\]: a bank of the source niah .* nothing to learn"
    ):
        builder.build(0)


def test_sources_of_samples_are_known_without_reading_them(corpus, samples):
    pools = source_pools(corpus, [6, 6, 12], [0, 2])
    found = {i: name for name, pool in pools.items() for i in pool.tolist()}
    assert found == {i: samples[i].source for i in (*range(6), *range(12, 24))}
