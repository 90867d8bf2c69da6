"""A request step by step, without a scheduler: what is fed, what is reported, what is refused."""

import pytest

from data_pipeline.protocol import END_OF_RETRIEVE, IM_END, REF_END, answer_request_pieces
from msa_train.errors import ConfigError
from msa_train.memory.engine.events import Evidence, Finished, Routed, Selection, TextPiece
from msa_train.memory.engine.interleave import InterleaveLimits, Request
from msa_train.memory.engine.sequence import Sequence
from tests.data_pipeline.tokenizer.test_huggingface import SPELLED
from tests.memory.building import encode_in_memory
from tests.memory.tiny import tiny_documents, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
NOTHING = Selection({}, [])


@pytest.fixture(scope="module")
def view():
    return encode_in_memory(tiny_model(), TOKENIZER, tiny_documents())


def written(sequence, *parts, room=1000, tokenizer=TOKENIZER):
    """The events of text and control tokens that the model writes."""
    events = []
    for part in parts:
        control = part in (REF_END, IM_END)
        for token in tokenizer.control_ids(part) if control else tokenizer.encode_text(part):
            events += sequence.append(token, room)
    return events


def test_ids_then_a_prefill_then_the_answer(view):
    sequence = Sequence(Request("Where?", view), TOKENIZER, 2000)
    first = sequence.context()
    assert sequence.prefilled(NOTHING) == [Routed(1, NOTHING)] and sequence.decoding
    *pieces, evidence = written(sequence, "[2]", REF_END)
    assert "".join(piece.text for piece in pieces) == "[2]"
    assert evidence == Evidence((tiny_documents()[0],))
    assert not sequence.decoding and sequence.pending == []
    assert len(sequence.context().tokens) > len(first.tokens)
    assert sequence.prefilled(NOTHING) == [Routed(2, NOTHING)]
    written(sequence, END_OF_RETRIEVE)
    request = TOKENIZER.encode_pieces(answer_request_pieces("Where?")).tokens
    assert sequence.pending[1:] == request  # after the last token of the end of retrieval
    *pieces, finished = written(sequence, "Here", IM_END)
    assert pieces == [TextPiece("answer", piece.text) for piece in pieces]
    assert isinstance(finished, Finished) and sequence.finished
    answer = finished.answer
    assert (answer.text, answer.evidence, answer.cut) == ("Here", (2,), False)
    assert answer.prompt_tokens == len(first.tokens)
    assert answer.answer_tokens == len(TOKENIZER.encode_text("Here"))


def test_a_control_token_that_is_spelled_ends_a_round_as_any_other(view):
    sequence = Sequence(Request("Where?", view), SPELLED, 4000)
    sequence.prefilled(NOTHING)
    *pieces, evidence = written(sequence, "[2]", REF_END, tokenizer=SPELLED)
    assert "".join(piece.text for piece in pieces) == "[2]"
    assert evidence == Evidence((tiny_documents()[0],)) and sequence.pending == []
    shown = SPELLED.decode(sequence.context().tokens)
    assert f"[2]{REF_END}[2]. {tiny_documents()[0].text}\n{REF_END}" in shown
    sequence.prefilled(NOTHING)
    written(sequence, END_OF_RETRIEVE, tokenizer=SPELLED)
    *_, finished = written(sequence, "Here", IM_END, tokenizer=SPELLED)
    assert finished.answer.text == "Here"


def test_a_vote_is_read_without_writing(view):
    limits = InterleaveLimits(documents=1)
    sequence = Sequence(Request("Where?", view, "router", limits), TOKENIZER, 2000)
    voted = Selection({}, [(17, 0.5), (2, 0.4)])
    routed, evidence = sequence.prefilled(voted)
    assert routed == Routed(1, voted) and [each.number for each in evidence.documents] == [17]
    assert not sequence.decoding and not sequence.awaits_vote


def test_what_does_not_fit_is_refused_with_the_numbers(view):
    tokens = len(Sequence(Request("Where?", view), TOKENIZER, 2000).context().tokens)
    with pytest.raises(ConfigError, match=rf"has {tokens} tokens.*room for {tokens} \(slot_tokens"):
        Sequence(Request("Where?", view), TOKENIZER, tokens).context()
    sequence = Sequence(Request("Where?", view), TOKENIZER, tokens + 10)
    sequence.prefilled(NOTHING)
    with pytest.raises(ConfigError, match="slot_tokens"):
        written(sequence, END_OF_RETRIEVE, room=1)  # the question, asked again, does not fit


def test_impossible_requests_are_refused(view):
    with pytest.raises(ConfigError, match="retrieval is 'guess'"):
        Request("?", view, "guess")
    with pytest.raises(ConfigError, match="stop: an empty string"):
        Request("?", view, stop=("",))


@pytest.mark.parametrize("found", [(), ("[2]", REF_END)])
def test_in_the_chat_form_the_answer_is_prefilled_and_tells_no_round_twice(view, found):
    sequence = Sequence(Request("Where?", view), TOKENIZER, 2000, "chat")
    sequence.prefilled(NOTHING)
    told = written(sequence, *found)
    if found:
        sequence.prefilled(NOTHING)
    told += written(sequence, END_OF_RETRIEVE)
    assert [event for event in told if isinstance(event, Evidence)] == (
        [Evidence((tiny_documents()[0],))] if found else []
    )
    assert not sequence.decoding and sequence.pending == []
    shown = TOKENIZER.decode(sequence.context().tokens)
    assert shown.endswith("Question: Where?\nAnswer briefly.<|im_end|>\n<|im_start|>assistant\n")
    assert (f"[2]. {tiny_documents()[0].text}" in shown) == bool(found)
    sequence.prefilled(NOTHING)
    *_, finished = written(sequence, "Here", IM_END)
    rounds = finished.answer.rounds
    assert finished.answer.text == "Here" and len(rounds) == 2 + bool(found)
    assert [each.evidence for each in rounds if each.evidence] == ([(2,)] if found else [])
