import re
from collections import Counter

import numpy as np
import pytest

from data_pipeline.protocol import ANSWER as ANSWERED
from data_pipeline.protocol import NOT_FOUND, context_pieces
from data_pipeline.schema import Document, Query
from data_pipeline.settings import ContextConfig
from data_pipeline.shards.contexts import (
    answer_memory_context,
    answer_text_context,
    make_sample,
    retrieve_context,
    text_context,
)
from data_pipeline.sources.base import DrawnBank

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
    routing = [p.text for p in context_pieces(context) if p.role.routes(frame=True)]
    assert routing[-1] == "[4]. four\n[5]. five\n[7]. seven\n"
    assert routing[-2].endswith("related to the question"), "without its last newline"


def test_an_answer_from_memory_is_routed_at_the_prompt():
    context = answer_memory_context(QUERY)
    assert text(context) == PROMPT + "<End-of-Retrieve>" + REQUEST + ANSWER
    assert written(context) == ANSWER
    assert context.positives == (4, 7)
    routing = "".join(p.text for p in context_pieces(context) if p.role.routes(frame=True))
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


CHAIN = Query("Who?", ("Me, too",), (4, 7, 9), steps=((7,), (4, 9)), masked=(2,))
TEXTS = {2: Document(2, "two"), 4: Document(4, "four"), 7: Document(7, "seven")}


TEXTS |= {9: Document(9, "nine")}


def test_a_chain_is_cut_into_single_steps():
    first, second = (retrieve_context(CHAIN, step, TEXTS) for step in (0, 1))
    assert text(first) == PROMPT + "[7]<|object_ref_end|>"
    assert (first.positives, first.masked, first.rounds) == ((7,), (2, 4, 9), 0)
    evidence = "[7]<|object_ref_end|>[7]. seven\n<|object_ref_end|>"
    assert text(second) == PROMPT + evidence + "[4][9]<|object_ref_end|>"
    assert written(second) == "[4][9]<|object_ref_end|>"
    assert (second.positives, second.masked, second.rounds) == ((4, 9), (2, 7), 1)
    routing = [p.text for p in context_pieces(second) if p.role.routes(frame=True)]
    assert routing[-1] == "[7]. seven\n", "the latest evidence routes the next step"


def test_a_chain_is_answered_after_all_its_steps():
    context = answer_text_context(CHAIN, (TEXTS[4], TEXTS[9]), TEXTS)
    assert text(context) == (
        PROMPT
        + "[7]<|object_ref_end|>[7]. seven\n<|object_ref_end|>"
        + "[4][9]<|object_ref_end|>[4]. four\n[9]. nine\n<|object_ref_end|>"
        + "<End-of-Retrieve>"
        + REQUEST
        + ANSWER
    )
    assert written(context) == "<End-of-Retrieve>" + ANSWER and context.positives == ()
    routing = [p.text for p in context_pieces(context) if p.role.routes(frame=True)]
    asked = PROMPT[len("<|im_start|>user\n") : PROMPT.index("\n<|im_end|>")]
    only = "only the latest evidence is class 0"
    assert "".join(routing) == asked + "[4]. four\n[9]. nine\n", only


def test_every_step_of_a_chain_is_drawn(rng):
    bank = DrawnBank(tuple(TEXTS.values()), (CHAIN,) * 64)
    sample = make_sample(rng, bank, ContextConfig(1, 0, 0))
    assert {context.rounds for context in sample.contexts} == {0, 1}


def test_plain_text_asks_nothing():
    context = text_context("Once upon a time.")
    assert text(context) == "<|im_start|>Once upon a time.<|im_end|>"
    assert written(context) == "Once upon a time.<|im_end|>"
    assert not any(p.role.routes(frame=True) for p in context_pieces(context))


def test_a_question_without_an_answer_is_retrieved_for(rng):
    bank = DrawnBank((Document(3, "three"),), (Query("three?", (), (3,)),), ("plain",))
    sample = make_sample(rng, bank, ContextConfig(0, 0, 1))
    assert [context.kind for context in sample.contexts] == ["retrieve", "text"]


def shares(config, query, bank, count=300):
    """How often each set of documents was read, and each answer given."""
    rng = np.random.default_rng(0)
    drawn = DrawnBank(bank, (query,))
    contexts = [make_sample(rng, drawn, config).contexts[0] for _ in range(count)]
    ids = re.compile(r"im_start\|>((?:\[\d+\])*)<\|object_ref")
    read = Counter(ids.search(text(context))[1] for context in contexts)
    answers = Counter(written(c).partition(ANSWERED)[2] for c in contexts)
    return read, answers


def test_hard_negatives_are_read_beside_the_right_ones_the_most_alike_first():
    config = ContextConfig(0, 1, 0, wrong_share=0.5, wrong_documents=2)
    bank = tuple(Document(number, f"text {number}") for number in range(1, 9))
    read, answers = shares(config, Query("Who?", ("Me",), (4,), hard=(7, 2, 5)), bank)
    assert set(read) == {"[4]", "[4][7]", "[2][4][7]"} and 120 < read["[4]"] < 180
    assert abs(read["[4][7]"] - read["[2][4][7]"]) < 50
    assert set(answers) == {"Me<|im_end|>"}


def test_where_the_right_ones_are_absent_the_memory_does_not_say():
    config = ContextConfig(0, 1, 0, wrong_share=0.0, wrong_documents=2, absent_share=0.25)
    bank = tuple(Document(number, f"text {number}") for number in range(1, 6))
    read, answers = shares(config, Query("Who?", ("Me",), (4,), hard=(5, 2)), bank)
    assert set(read) == {"[4]", "[5]", "[2][5]"} and 200 < read["[4]"] < 250
    assert answers == {"Me<|im_end|>": read["[4]"], f"{NOT_FOUND}<|im_end|>": 300 - read["[4]"]}
    read, _ = shares(config, Query("Who?", ("Me",), (4,), masked=(2,)), bank)
    assert not any("4" in ids or "2" in ids for ids in read if ids != "[4]"), "any others"
    read, _ = shares(config, Query("Who?", ("Me",), (4,)), bank[3:4])
    assert set(read) == {"[4]", ""}, "there may be nothing to read"


def test_the_chat_form_holds_the_texts_of_all_steps():
    config = ContextConfig(0, 1, 0, wrong_share=0.0, answers="chat")
    bank = tuple(Document(number, f"text {number}") for number in range(1, 6))
    query = Query("Who?", ("Me",), (2, 4), steps=((4,), (2,)))
    (context,) = make_sample(np.random.default_rng(0), DrawnBank(bank, (query,)), config).contexts
    assert context.kind == "answer_chat" and not context.positives
    assert text(context) == (
        "<|im_start|>user\n[2]. text 2\n[4]. text 4\n\nQuestion: Who?\nAnswer briefly.<|im_end|>\n"
        "<|im_start|>assistant\nMe<|im_end|>"
    )
    assert written(context) == "Me<|im_end|>"
