from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.mixture import BankConfig, BanksConfig, ContextConfig, DataConfig, Stage
from data_pipeline.protocol import context_pieces
from data_pipeline.samples import (
    SampleBuilder,
    answer_memory_context,
    answer_text_context,
    make_sample,
    make_source,
    retrieve_context,
)
from data_pipeline.schema import Document, Query, Role

QUERY = Query("Who?", ("Me, too",), (4, 7))
PROMPT = (
    "<|im_start|>user\n"
    "\nPlease answer the question based on the above historical document information\n\n"
    "Who?\nPlease return all documents related to the question\n"
    "<|im_end|>\n<|im_start|>"
)
REQUEST = "<|im_start|>The user's question is: Who?\n<|object_ref_end|>"
ANSWER = "The answer to the question is: Me, too<|im_end|>"


def text(context):
    return "".join(piece.text for piece in context_pieces(context))


def written(context):
    return "".join(piece.text for piece in context.response if piece.label)


def test_a_retrieval_step_writes_the_ids():
    context = retrieve_context(QUERY)
    assert text(context) == PROMPT + "[4][7]<|object_ref_end|>"
    assert written(context) == "[4][7]<|object_ref_end|>"
    assert context.positives == (4, 7)


def test_an_answer_from_texts_takes_no_router_loss():
    evidence = (Document(4, "four"), Document(5, "five"), Document(7, "seven"))
    context = answer_text_context(QUERY, evidence)
    assert text(context) == (
        PROMPT
        + "[4][5][7]<|object_ref_end|>[4]. four\n[5]. five\n[7]. seven\n<|object_ref_end|>"
        + "<End-of-Retrieve>"
        + REQUEST
        + ANSWER
    )
    assert written(context) == "<End-of-Retrieve>" + ANSWER
    assert context.positives == ()
    routing = [p.text for p in context_pieces(context) if p.role == Role.QUERY]
    assert routing[-1] == "[4]. four\n[5]. five\n[7]. seven\n"
    assert routing[0].endswith("related to the question"), "without its last newline"


def test_an_answer_from_memory_is_routed_at_the_prompt():
    context = answer_memory_context(QUERY)
    assert text(context) == PROMPT + "<End-of-Retrieve>" + REQUEST + ANSWER
    assert written(context) == ANSWER
    assert context.positives == (4, 7)
    routing = "".join(p.text for p in context_pieces(context) if p.role == Role.QUERY)
    assert routing.endswith("related to the question\n")


def test_kinds_come_in_their_proportions(niah, rng):
    bank = niah.bank(rng, 512)
    sample = make_sample(rng, bank, ContextConfig(0.5, 0.0, 0.5))
    kinds = Counter(context.kind for context in sample.contexts)
    assert set(kinds) == {"retrieve", "answer_memory"}
    assert 0.4 < kinds["retrieve"] / len(bank.queries) < 0.6
    assert [c.question for c in sample.contexts] == [q.question for q in bank.queries]
    assert sample.documents == bank.documents


@pytest.mark.parametrize("share, most", [(0.0, 2), (1.0, 2), (1.0, 1)])
def test_wrong_documents_stand_among_the_evidence(niah, rng, share, most):
    bank = niah.bank(rng, 128)
    config = ContextConfig(0, 1, 0, wrong_share=share, wrong_documents=most)
    sample = make_sample(rng, bank, config)
    texts = {document.number: document.text for document in bank.documents}
    wrong = Counter()
    for context, query in zip(sample.contexts, bank.queries, strict=True):
        ids, _, evidence = [piece.text for piece in context.response[:3]]
        numbers = [int(number) for number in ids[1:-1].split("][")]
        assert numbers == sorted(numbers) and set(query.positives) <= set(numbers)
        assert evidence == "".join(f"[{number}]. {texts[number]}\n" for number in numbers)
        wrong[len(numbers) - len(query.positives)] += 1
    assert max(wrong) == (most if share else 0)
    assert set(wrong) == ({0} if not share else set(wrong)) and (share == 0 or wrong[1] > 0)


def test_a_sample_depends_on_seed_and_index_alone(config, tokenizer, samples):
    other = SampleBuilder(replace(config, workers=9), tokenizer)
    for i in reversed(range(config.samples)):
        assert other.build(i) == samples[i]
    assert len({sample.to_bytes() for sample in samples}) == config.samples


def test_another_seed_gives_other_samples(config, tokenizer, samples):
    needles = replace(config, seed=1, stages=(Stage(weights={"niah": 1.0}),))
    assert SampleBuilder(needles, tokenizer).build(0) not in samples


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


def test_a_source_without_weight_is_not_built(tokenizer):
    banks = BanksConfig(pydocs=BankConfig(weight=0.0))
    builder = SampleBuilder(DataConfig(banks=banks, stages=(Stage(),)), tokenizer)
    assert {builder.build(i).source for i in range(5)} == {"niah"}


def test_an_unknown_source_is_refused(config, tokenizer):
    with pytest.raises(DataError, match="'books'"):
        make_source("books", config, tokenizer)
