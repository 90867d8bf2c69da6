"""The text protocol between a model and its memory, byte for byte (SPEC section 4).

The same functions build training samples and drive the serving engine, so that a model is asked
exactly as it was taught. Strings and pieces only: tokens are the tokenizer's business.

A conversation, one line per run of text between control tokens (shown in brackets ⟨⟩):

    ⟨im_start⟩ user\\n                                            head, template
    \\nPlease answer ... {question}\\nPlease return ... question\\n  question, routing query
    ⟨im_end⟩ \\n ⟨im_start⟩                                       tail (template), response head
    [4][7] ⟨object_ref_end⟩                                      the model writes ids
    [4]. {text}\\n[7]. {text}\\n ⟨object_ref_end⟩                  the engine appends the evidence
    <End-of-Retrieve>                                            the model has what it needs
    ⟨im_start⟩ The user's question is: ...\\n ⟨object_ref_end⟩     the engine asks again
    The answer to the question is: {answer} ⟨im_end⟩             the model answers

A backbone that follows instructions already may be asked for the answer in its own way instead
(AnswerForm "chat"): in place of the whole conversation above stands one turn with the texts and
the question, and the assistant's turn is the answer.

    ⟨im_start⟩ user\n                                            head, template
    [4]. {text}\n[7]. {text}\n \nQuestion:  {question}           texts, routing query
    \nAnswer briefly.                                            frame
    ⟨im_end⟩ \n ⟨im_start⟩ assistant\n {answer} ⟨im_end⟩          tail, response

Two extensions for conversations, which no model was taught. Without them every byte is as above;
neither routes, so neither draws documents. Earlier turns stand before the head, in the form of the
chat template, and instructions before the question, in the same run of text:

    ⟨im_start⟩ user\n {text} ⟨im_end⟩ \n ⟨im_start⟩ assistant\n {text} ⟨im_end⟩ \n
    \nPlease answer ... {instructions}\n\n{question}\nPlease return ... question\n
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from data_pipeline.errors import DataError
from data_pipeline.schema import Context, Document, Piece, Role

IM_START, IM_END, REF_END = "<|im_start|>", "<|im_end|>", "<|object_ref_end|>"
CONTROL_TOKENS = (IM_START, IM_END, REF_END)
END_OF_RETRIEVE = "<End-of-Retrieve>"  # ordinary tokens, not a vocabulary entry
RETRIEVAL_LIMIT = 1000  # characters of ids after which retrieval ends by force (as published)

HEAD = "user\n"
TAIL = "\n"
ASK = "\nPlease answer the question based on the above historical document information\n\n"
RETRIEVE = "\nPlease return all documents related to the question"
USER_QUESTION = "The user's question is: "
ANSWER = "The answer to the question is: "
ASSISTANT = "assistant\n"
CHAT_QUESTION, BRIEFLY = "\nQuestion: ", "\nAnswer briefly."
NOT_FOUND = "The memory does not say."  # the answer where no text that was read holds one

Turn = tuple[str, str]  # role (user or assistant) and text
AnswerForm = Literal["protocol", "chat"]  # how a model is asked for the answer from texts

_ID = re.compile(r"\[([0-9]{1,18})\]")


@dataclass(frozen=True)
class Round:
    """A retrieval round that is over: the ids as the model wrote them, and the evidence appended.

    evidence: the known documents among them, ascending by number; empty when none was known.
    """

    written: str
    evidence: tuple[Document, ...] = ()


# Documents


def document_pieces(number: int, text: str) -> list[Piece]:
    """A document as it is encoded into the bank: `<|im_start|>[g]. {text}[g]<|im_end|>`."""
    return [_control(IM_START), Piece(f"[{number}]. {text}[{number}]"), _control(IM_END)]


# Prompt


def head_pieces() -> list[Piece]:
    """Template head: the leading tokens that never see the memory (3 in the Qwen3 template)."""
    return [_control(IM_START, Role.TEMPLATE), Piece(HEAD, Role.TEMPLATE)]


def question_pieces(question: str, first_round: bool = True, instructions: str = "") -> list[Piece]:
    """The question and its frame, routing query tokens (class 0), in one run of text.

    In the first round all of it is class 0; from the second round on the last newline is not.
    Instructions stand between frame and question, and do not route.
    """
    given = [Piece(f"{instructions}\n\n")] if instructions else []
    return [
        Piece(ASK, Role.FRAME),
        *given,
        Piece(question, Role.QUERY),
        Piece(RETRIEVE, Role.FRAME),
        Piece("\n", Role.FRAME if first_round else Role.RESPONSE),
    ]


def earlier_pieces(turns: Sequence[Turn]) -> list[Piece]:
    """Earlier turns of a conversation, as the chat template writes them; none of it routes.

    Empty turns are left out. The first turn's head takes the place of the template head: the
    leading tokens that never see the memory. Raises DataError for another role than user and
    assistant.
    """
    pieces = []
    for role, text in turns:
        if role not in ("user", "assistant"):
            raise DataError(f"an earlier turn is of {role!r}: give user or assistant")
        if text:
            head = [_control(IM_START, Role.TEMPLATE), Piece(f"{role}\n", Role.TEMPLATE)]
            pieces += [*head, Piece(text), *tail_pieces()]
    return pieces


def tail_pieces() -> list[Piece]:
    return [_control(IM_END, Role.TEMPLATE), Piece(TAIL, Role.TEMPLATE)]


def prompt_pieces(
    question: str,
    first_round: bool = True,
    instructions: str = "",
    earlier: Sequence[Turn] = (),
) -> list[Piece]:
    """Earlier turns, head, question, tail and response head: everything before the response."""
    return [
        *earlier_pieces(earlier),
        *head_pieces(),
        *question_pieces(question, first_round, instructions),
        *tail_pieces(),
        _control(IM_START),
    ]


def rounds_pieces(
    question: str,
    rounds: Sequence[Round],
    instructions: str = "",
    earlier: Sequence[Turn] = (),
) -> list[Piece]:
    """The full prefill after `rounds` retrieval rounds: prompt and everything said so far.

    No rounds: the prompt, all of its question text class 0. Later: class 0 is the prompt up to
    and including "...related to the question" without its last newline, and the LATEST evidence
    that has documents, up to, not including, its end token. All of it is context (no labels).
    """
    pieces = prompt_pieces(question, not rounds, instructions, earlier)
    latest = max((i for i, past in enumerate(rounds) if past.evidence), default=None)
    for index, past in enumerate(rounds):
        pieces += [Piece(past.written), _control(REF_END)]
        pieces += evidence_pieces(past.evidence, latest=index == latest)
    return pieces


# Response


def written_ids(numbers: Iterable[int]) -> str:
    """Ids in the form the model writes them, ascending: `[4][7]`."""
    return "".join(f"[{number}]" for number in sorted(numbers))


def retrieval_pieces(numbers: Iterable[int], label: bool = True) -> list[Piece]:
    """One round's ids and their end token, as the model writes them."""
    return [Piece(written_ids(numbers), label=label), _control(REF_END, label=label)]


def evidence_pieces(documents: Iterable[Document], latest: bool = True) -> list[Piece]:
    """What the engine appends for the ids of a round; bare end token when no document is known.

    latest: this is the newest evidence, so its text (not its end token) routes the next round.
    """
    texts = sorted(documents, key=lambda document: document.number)
    text = "".join(map(evidence_text, texts))
    evidence = [Piece(text, Role.QUERY if latest else Role.RESPONSE)] if text else []
    return [*evidence, _control(REF_END)]


def evidence_text(document: Document) -> str:
    """A document as it is appended."""
    return f"[{document.number}]. {document.text}\n"


def end_of_retrieve_pieces(label: bool = False) -> list[Piece]:
    """The end of retrieval: written by the model (label), or by force, as if it had written it."""
    return [Piece(END_OF_RETRIEVE, label=label)]


def answer_request_pieces(question: str) -> list[Piece]:
    """What the engine appends after the end of retrieval, without routing again."""
    return [_control(IM_START), Piece(f"{USER_QUESTION}{question}\n"), _control(REF_END)]


def answer_pieces(answer: str) -> list[Piece]:
    """The answer and its end token, as the model writes them."""
    return [Piece(f"{ANSWER}{answer}", label=True), _control(IM_END, label=True)]


def memory_answer_pieces(question: str) -> list[Piece]:
    """What follows the response head when the answer comes from pooled memory alone: no ids."""
    return [*end_of_retrieve_pieces(), *answer_request_pieces(question)]


def chat_pieces(
    question: str,
    documents: Iterable[Document],
    instructions: str = "",
    earlier: Sequence[Turn] = (),
) -> list[Piece]:
    """Everything before the answer in the chat form: the texts in one turn with the question."""
    texts = sorted(documents, key=lambda document: document.number)
    given = f"{instructions}\n\n" if instructions else ""
    return [
        *earlier_pieces(earlier),
        *head_pieces(),
        Piece(given + "".join(map(evidence_text, texts))),
        Piece(CHAT_QUESTION, Role.FRAME),
        Piece(question, Role.QUERY),
        Piece(BRIEFLY, Role.FRAME),
        *tail_pieces(),
        _control(IM_START),
        Piece(ASSISTANT),
    ]


def chat_answer_pieces(answer: str) -> list[Piece]:
    """The assistant's turn in the chat form, as the model writes it."""
    return [Piece(answer, label=True), _control(IM_END, label=True)]


def context_pieces(context: Context) -> list[Piece]:
    """All pieces of a training context: its prompt and its response (plain text has no prompt, and
    the chat form brings its own)."""
    if context.kind in ("text", "answer_chat"):
        return list(context.response)
    return [*prompt_pieces(context.question, context.rounds == 0), *context.response]


def text_pieces(text: str) -> list[Piece]:
    """Plain text that the model learns to continue; it asks nothing, so it routes nothing."""
    start = _control(IM_START, Role.TEMPLATE)
    return [start, Piece(text, label=True), _control(IM_END, label=True)]


# Reading what the model wrote


def parse_ids(text: str, known: Callable[[int], bool]) -> list[int]:
    """Document numbers in written text like `[4][7]`: known ones, each once, ascending."""
    return sorted({number for digits in _ID.findall(text) if known(number := int(digits))})


def parse_answer(text: str) -> str:
    """The answer in text like `The answer to the question is: ...<|im_end|>`, stripped.

    Text without the phrase is taken whole: a model that forgot the phrase may still be right.
    """
    return text.split(IM_END)[0].rpartition(ANSWER.rstrip())[2].strip()


def _control(token: str, role: Role = Role.RESPONSE, label: bool = False) -> Piece:
    return Piece(token, role, control=True, label=label)
