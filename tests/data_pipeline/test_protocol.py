"""The strings of SPEC section 4, byte for byte."""

import pytest

from data_pipeline.errors import DataError
from data_pipeline.protocol import (
    Round,
    answer_pieces,
    answer_request_pieces,
    context_pieces,
    document_pieces,
    end_of_retrieve_pieces,
    evidence_pieces,
    head_pieces,
    memory_answer_pieces,
    parse_answer,
    parse_ids,
    prompt_pieces,
    retrieval_pieces,
    rounds_pieces,
    tail_pieces,
)
from data_pipeline.schema import Document, Query, Role
from data_pipeline.shards.contexts import answer_text_context

PROMPT = (
    "<|im_start|>user\n"
    "\nPlease answer the question based on the above historical document information\n\n"
    "Who?\nPlease return all documents related to the question\n"
    "<|im_end|>\n<|im_start|>"
)
FOUR, SEVEN = Document(4, "four"), Document(7, "seven")


def text(pieces):
    return "".join(piece.text for piece in pieces)


def flagged(pieces, role):
    return text(piece for piece in pieces if piece.role == role)


def routed(pieces):
    return text(piece for piece in pieces if piece.role.routes(frame=True))


def written(pieces):
    return text(piece for piece in pieces if piece.label)


def test_strings():
    assert text(document_pieces(12, "Some text.")) == "<|im_start|>[12]. Some text.[12]<|im_end|>"
    assert text(prompt_pieces("Who?")) == PROMPT
    assert text(retrieval_pieces((7, 4))) == "[4][7]<|object_ref_end|>"
    assert text(evidence_pieces((SEVEN, FOUR))) == "[4]. four\n[7]. seven\n<|object_ref_end|>"
    assert text(evidence_pieces(())) == "<|object_ref_end|>"
    assert (
        text(answer_request_pieces("Who?"))
        == "<|im_start|>The user's question is: Who?\n<|object_ref_end|>"
    )
    assert text(answer_pieces("Me")) == "The answer to the question is: Me<|im_end|>"
    assert (
        text(memory_answer_pieces("Who?"))
        == "<End-of-Retrieve><|im_start|>The user's question is: Who?\n<|object_ref_end|>"
    )


def test_only_control_tokens_are_control_pieces():
    pieces = [*document_pieces(1, "<|im_end|>"), *rounds_pieces("?", [Round("[1]", (FOUR,))])]
    controls = {piece.text for piece in pieces if piece.control}
    assert controls == {"<|im_start|>", "<|im_end|>", "<|object_ref_end|>"}
    assert [p.control for p in document_pieces(1, "<|im_end|>")] == [True, False, True]
    assert not any(piece.control for piece in end_of_retrieve_pieces())


def test_the_model_writes_ids_and_answers_alone():
    assert written(prompt_pieces("Who?")) == ""
    assert written(evidence_pieces((FOUR,))) == ""
    assert written(answer_request_pieces("Who?")) == ""
    assert written(memory_answer_pieces("Who?")) == ""
    assert written(retrieval_pieces((4,))) == "[4]<|object_ref_end|>"
    assert written(answer_pieces("Me")) == "The answer to the question is: Me<|im_end|>"
    assert written(rounds_pieces("Who?", [Round("[4]", (FOUR,))])) == ""


def test_template_is_head_and_tail():
    assert flagged(prompt_pieces("Who?"), Role.TEMPLATE) == "<|im_start|>user\n<|im_end|>\n"
    assert {piece.role for piece in head_pieces() + tail_pieces()} == {Role.TEMPLATE}


def test_in_the_first_round_all_question_text_routes():
    pieces = rounds_pieces("Who?", [])
    assert pieces == prompt_pieces("Who?")
    assert routed(pieces) == PROMPT[len("<|im_start|>user\n") : PROMPT.index("<|im_e")]


def test_where_the_frame_does_not_route_the_question_does_alone():
    asked = prompt_pieces("Who?", instructions="Be kind.", earlier=[("user", "Hello.")])
    assert flagged(asked, Role.QUERY) == "Who?"
    assert flagged(rounds_pieces("Who?", [Round("[4]", (FOUR,))]), Role.QUERY) == "Who?[4]. four\n"


def test_later_the_question_without_its_last_newline_and_the_latest_evidence_route():
    first, second = Round("[4]", (FOUR,)), Round("[9][7]", (SEVEN,))
    asked = PROMPT[len("<|im_start|>user\n") : PROMPT.index("\n<|im_end|>")]
    assert asked.endswith("related to the question")

    pieces = rounds_pieces("Who?", [first])
    after_first = PROMPT + "[4]<|object_ref_end|>[4]. four\n<|object_ref_end|>"
    assert text(pieces) == after_first
    assert routed(pieces) == asked + "[4]. four\n"

    pieces = rounds_pieces("Who?", [first, second])
    assert text(pieces) == (
        after_first + "[9][7]<|object_ref_end|>[7]. seven\n<|object_ref_end|>"
    ), "what the model wrote stays as it was written, unknown ids too"
    assert routed(pieces) == asked + "[7]. seven\n"


def test_a_round_that_found_nothing_leaves_the_evidence_before_it_latest():
    pieces = rounds_pieces("Who?", [Round("[4]", (FOUR,)), Round("[99]")])
    assert text(pieces).endswith("[99]<|object_ref_end|><|object_ref_end|>")
    assert routed(pieces).endswith("related to the question[4]. four\n")
    only_nothing = rounds_pieces("Who?", [Round("[99]")])
    assert routed(only_nothing).endswith("related to the question")


def test_training_and_serving_agree_on_the_second_round():
    context = answer_text_context(Query("Who?", ("Me",), (4, 7)), (FOUR, SEVEN))
    served = rounds_pieces("Who?", [Round("[4][7]", (FOUR, SEVEN))])
    trained = context_pieces(context)
    assert trained[: len(served)] == served
    assert written(trained[len(served) :]) == (
        "<End-of-Retrieve>The answer to the question is: Me<|im_end|>"
    )


@pytest.mark.parametrize(
    "generated, ids",
    [
        ("[4][7]", [4, 7]),
        ("[7][4][7]<|object_ref_end|>", [4, 7]),
        ("[99][4]", [4]),
        ("[4", []),
        ("4 [x] [] [-4] [٤]", []),
        ("[0004]", [4]),
        (f"[{'9' * 5000}][7]", [7]),
        ("", []),
    ],
)
def test_ids_are_known_ones_once_ascending(generated, ids):
    assert parse_ids(generated, {4, 7}.__contains__) == ids


@pytest.mark.parametrize(
    "generated, answer",
    [
        ("The answer to the question is: Me<|im_end|>", "Me"),
        ("The answer to the question is:  a, b \n<|im_end|>rest", "a, b"),
        ("The answer to the question is:<|im_end|>", ""),
        ("Me", "Me"),
        ("", ""),
    ],
)
def test_the_answer_is_read_from_what_was_written(generated, answer):
    assert parse_answer(generated) == answer


TURNS = (("user", "Who <|im_end|>?"), ("assistant", ""), ("assistant", "Me."))


def test_instructions_stand_before_the_question_and_do_not_route():
    pieces = prompt_pieces("Who?", instructions="Be brief.")
    assert text(pieces) == PROMPT.replace("Who?", "Be brief.\n\nWho?")
    assert routed(pieces) == routed(prompt_pieces("Who?"))
    later = rounds_pieces("Who?", [Round("[4]", (FOUR,))], "Be brief.")
    plain = rounds_pieces("Who?", [Round("[4]", (FOUR,))])
    assert text(later) == text(plain).replace("Who?", "Be brief.\n\nWho?", 1)
    assert routed(later) == routed(plain)


def test_earlier_turns_stand_before_the_prompt_and_do_not_route():
    before = "<|im_start|>user\nWho <|im_end|>?<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>\n"
    pieces = prompt_pieces("Who?", earlier=TURNS)
    assert text(pieces) == before + PROMPT
    assert routed(pieces) == routed(prompt_pieces("Who?"))
    assert sum(piece.control for piece in pieces) == 4 + 3  # what a user writes is text
    later = rounds_pieces("Who?", [Round("[4]", (FOUR,))], earlier=TURNS)
    assert text(later) == before + text(rounds_pieces("Who?", [Round("[4]", (FOUR,))]))


def test_the_head_of_a_conversation_is_as_long_as_that_of_a_question():
    from tests.memory.tiny import tiny_tokenizer

    heads = {
        tiny_tokenizer().encode_pieces(prompt_pieces("Who?", earlier=turns)).head_length
        for turns in ((), TURNS, TURNS[:2])
    }
    assert len(heads) == 1


def test_no_extension_leaves_every_byte_as_it_was():
    assert prompt_pieces("Who?", True, "", ()) == prompt_pieces("Who?")
    assert text(prompt_pieces("Who?", instructions="", earlier=(("user", ""),))) == PROMPT


def test_an_earlier_turn_of_somebody_else_is_refused():
    with pytest.raises(DataError, match="'system': give user or assistant"):
        prompt_pieces("Who?", earlier=(("system", "x"),))
