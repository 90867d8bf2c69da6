"""The protocol with a scripted model: what is appended when, and when it ends."""

import pytest

from data_pipeline.protocol import (
    END_OF_RETRIEVE,
    IM_END,
    IM_START,
    REF_END,
    Round,
    answer_request_pieces,
    context_pieces,
    prompt_pieces,
    rounds_pieces,
)
from data_pipeline.schema import Query
from data_pipeline.shards.contexts import answer_chat_context
from msa_train.errors import ConfigError
from msa_train.memory.engine.interleave import (
    Interleave,
    InterleaveLimits,
    Next,
    Request,
    usual_mode,
)
from tests.memory.building import encode_in_memory
from tests.memory.tiny import tiny_documents, tiny_model, tiny_tokenizer

QUESTION = "What is the code of the harbour?"
DOCUMENTS = {document.number: document for document in tiny_documents()}


@pytest.fixture(scope="module")
def view():
    return encode_in_memory(tiny_model(), tiny_tokenizer(), tiny_documents())


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def write(state, text, control=None):
    """Writes `text` character by character, then the control token: the first turn but WRITE."""
    for count in range(1, len(text) + 1):
        if (follows := state.advance(text[:count], count)) is not Next.WRITE:
            return follows, text[:count]
    follows = state.advance(text, len(text) + 1, control) if control else Next.WRITE
    return follows, text


def test_a_model_that_reads_no_pooled_memory_is_asked_by_its_routers_votes():
    assert usual_mode(tiny_model().config) == "generate"
    assert usual_mode(tiny_model("none", reads="none").config) == "router"


def test_two_rounds_then_the_answer(view):
    state = Interleave(Request(QUESTION, view))
    assert state.context == prompt_pieces(QUESTION)
    assert write(state, "[41][2]", REF_END) == (Next.PREFILL, "[41][2]")
    first = f"[2]. {DOCUMENTS[2].text}\n[41]. {DOCUMENTS[41].text}\n"
    assert text_of(state.context).endswith(f"{IM_START}[41][2]{REF_END}{first}{REF_END}")
    assert write(state, "[17]", REF_END)[0] is Next.PREFILL
    second = f"[17]. {DOCUMENTS[17].text}\n"
    assert text_of(state.context).endswith(f"{first}{REF_END}[17]{REF_END}{second}{REF_END}")
    routing = [piece.text for piece in state.context if piece.role.routes(frame=True)]
    assert routing[-1] == second and first not in routing  # only the LATEST evidence routes
    assert write(state, END_OF_RETRIEVE + "x") == (Next.APPEND, END_OF_RETRIEVE)
    assert state.appended == answer_request_pieces(QUESTION)
    assert write(state, "The answer to the question is: 4711", IM_END)[0] is Next.STOP
    assert state.answer == "4711"
    assert state.forced == []


@pytest.mark.parametrize(
    ("written", "evidence"),
    [
        ("[4][5]", ()),
        ("", ()),
        ("nothing I can read", ()),
        ("[17][2][17][99]", (2, 17)),
        ("[1000][123456][123457]", (1000, 123456)),
    ],
)
def test_unknown_ids_and_doubles_are_dropped(view, written, evidence):
    state = Interleave(Request(QUESTION, view))
    assert state.advance(written, 1, REF_END) is Next.PREFILL
    assert tuple(document.number for document in state.rounds[0].evidence) == evidence
    assert state.rounds[0].written == written
    if not evidence:
        assert text_of(state.context).endswith(f"{written}{REF_END}{REF_END}")


def test_too_many_characters_end_retrieval_as_if_the_model_had(view):
    state = Interleave(Request(QUESTION, view, limits=InterleaveLimits(retrieval_characters=20)))
    assert write(state, "[2][17]", REF_END)[0] is Next.PREFILL  # 7 characters
    follows, written = write(state, "[40]" * 10)
    assert (follows, len(written)) == (Next.APPEND, 14)
    assert text_of(state.appended).startswith(f"{END_OF_RETRIEVE}{IM_START}The user's question is")
    assert state.forced == ["more than 20 characters of ids"]
    assert state.stage == "answer"


def test_the_published_limit_is_a_thousand_characters(view):
    state = Interleave(Request(QUESTION, view))
    assert len(write(state, "[2]" * 400)[1]) == 1001


@pytest.mark.parametrize("control", [IM_END, IM_START])
def test_another_control_token_ends_retrieval(view, control):
    state = Interleave(Request(QUESTION, view))
    assert write(state, "[2]", control)[0] is Next.APPEND
    assert state.forced == [f"{control} instead of ids"]
    assert not state.rounds


def test_too_many_rounds_end_retrieval_within_the_last_prefill(view):
    state = Interleave(Request(QUESTION, view, limits=InterleaveLimits(rounds=2)))
    for _ in range(2):
        assert write(state, "[2]", REF_END)[0] is Next.PREFILL
    assert state.forced == ["2 rounds"]
    end = f"{REF_END}{END_OF_RETRIEVE}{IM_START}The user's question is: {QUESTION}\n{REF_END}"
    assert text_of(state.context).endswith(end)
    assert write(state, "4711", IM_END)[0] is Next.STOP
    assert state.answer == "4711"


def test_a_long_answer_is_cut(view):
    state = Interleave(Request(QUESTION, view, "memory", InterleaveLimits(answer_tokens=5)))
    assert write(state, "abcdefgh") == (Next.STOP, "abcde")
    assert state.forced == ["5 tokens of answer"]


def test_the_router_may_choose(view):
    state = Interleave(Request(QUESTION, view, "router", InterleaveLimits(documents=2)))
    assert state.awaits_vote
    assert state.context == prompt_pieces(QUESTION)
    assert state.choose([41, 2, 17]) is Next.PREFILL
    assert not state.awaits_vote
    past = Round("[2][41]", (DOCUMENTS[2], DOCUMENTS[41]))
    prompt = rounds_pieces(QUESTION, [past])
    assert state.context[: len(prompt)] == prompt
    request = f"{END_OF_RETRIEVE}{IM_START}The user's question is: {QUESTION}\n{REF_END}"
    assert text_of(state.context[len(prompt) :]) == request


def test_pooled_memory_alone(view):
    state = Interleave(Request(QUESTION, view, "memory"))
    assert not state.awaits_vote
    request = f"{END_OF_RETRIEVE}{IM_START}The user's question is: {QUESTION}\n{REF_END}"
    assert text_of(state.context) == text_of(prompt_pieces(QUESTION)) + request
    routing = "".join(piece.text for piece in state.context if piece.role.routes(frame=True))
    assert routing.endswith("related to the question\n")  # first round: with its newline
    assert write(state, "The answer to the question is: it", IM_END)[0] is Next.STOP
    assert state.answer == "it"


def test_impossible_settings_are_refused(view):
    with pytest.raises(ConfigError, match="retrieval is 'guess': give one of generate"):
        Interleave(Request(QUESTION, view, "guess"))
    with pytest.raises(ConfigError, match="rounds is 0"):
        InterleaveLimits(rounds=0)


def test_in_the_chat_form_texts_and_question_are_one_turn(view):
    limits = InterleaveLimits(documents=2)
    state = Interleave(Request(QUESTION, view, "router", limits), "chat")
    assert state.context == prompt_pieces(QUESTION), "found as ever"
    assert state.choose([41, 2, 17]) is Next.PREFILL
    assert text_of(state.context) == (
        f"{IM_START}user\n[2]. {DOCUMENTS[2].text}\n[41]. {DOCUMENTS[41].text}\n"
        f"\nQuestion: {QUESTION}\nAnswer briefly.{IM_END}\n{IM_START}assistant\n"
    )
    assert [p.text for p in state.context if p.role.routes(frame=False)] == [QUESTION]
    assert write(state, "4711", IM_END)[0] is Next.STOP
    assert (state.answer, state.forced) == ("4711", [])


def test_in_the_chat_form_a_model_is_asked_as_it_was_taught(view):
    evidence = (DOCUMENTS[2], DOCUMENTS[41])
    taught = context_pieces(answer_chat_context(Query(QUESTION, ("4711",), (2,)), evidence))
    state = Interleave(Request(QUESTION, view, "router"), "chat")
    state.choose([41, 2])
    assert [piece for piece in taught if not piece.label] == state.context
    assert text_of(piece for piece in taught if piece.label) == f"4711{IM_END}"


@pytest.mark.parametrize("end", [(END_OF_RETRIEVE, None), ("[1", IM_END)])
def test_in_the_chat_form_what_was_written_and_read_gives_way(view, end):
    state = Interleave(Request(QUESTION, view, instructions="Be kind."), "chat")
    write(state, "[41]", REF_END)
    assert state.context == rounds_pieces(QUESTION, state.rounds, "Be kind.")
    follows, _ = write(state, *end)
    assert follows is Next.PREFILL and bool(state.forced) == (end[1] is not None)
    assert text_of(state.context).startswith(f"{IM_START}user\nBe kind.\n\n[41]. ")


def test_in_the_chat_form_pooled_memory_is_asked_as_ever(view):
    asked = Request(QUESTION, view, "memory")
    assert Interleave(asked, "chat").context == Interleave(asked).context
