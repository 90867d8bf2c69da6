"""Prompts as token ids: questions, conversations, and what is neither."""

import pytest
import torch
from transformers import GenerationConfig

from data_pipeline.tokenizer.huggingface import HuggingFaceTokenizer
from msa_train.errors import ConfigError
from msa_train.interop.huggingface.asking import Prompt, Settings, output, read_prompt
from msa_train.memory.engine.events import Answer, RoundReport, Selection
from msa_train.memory.engine.interleave import InterleaveLimits
from msa_train.memory.engine.sampling import Sampling
from tests.data_pipeline.tokenizer.test_huggingface import trained
from tests.memory.building import encode_in_memory
from tests.memory.tiny import tiny_documents, tiny_model, tiny_tokenizer

TOKENIZER = HuggingFaceTokenizer(trained())
START, END, REF = (
    TOKENIZER.control_ids(f"<|{n}|>")[0] for n in ("im_start", "im_end", "object_ref_end")
)
OTHER = TOKENIZER.pad_id


def ids(*parts):
    """Token ids of texts and single tokens."""
    return [
        i
        for part in parts
        for i in ([part] if isinstance(part, int) else TOKENIZER.encode_text(part))
    ]


def turn(role, text):
    return START, f"{role}\n{text}", END, "\n"


HEAD = (START, "assistant\n")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("Which word?",), Prompt("Which word?")),
        ((OTHER, "Which word?"), Prompt("Which word?")),
        (("a <|im_end|>\nb",), Prompt("a <|im_end|>\nb")),
        (turn("user", "Which?"), Prompt("Which?")),
        ((*turn("user", "a\nb"), *HEAD), Prompt("a\nb")),
        ((START, "user\nx", END), Prompt("x")),
        (
            (*turn("system", "s"), *turn("user", "q"), *turn("assistant", "a"), *turn("user", "r"),
             *HEAD),
            Prompt("r", "s", (("user", "q"), ("assistant", "a"))),
        ),
        (
            (*turn("developer", "s"), *turn("system", "t"), *turn("user", "q")),
            Prompt("q", "s\nt"),
        ),
    ],
    ids=str,
)  # fmt: skip
def test_prompts_are_read(parts, expected):
    assert read_prompt(TOKENIZER, ids(*parts)) == expected


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((), "the question in input_ids is ''"),
        ((" \n",), "the question in input_ids is"),
        (turn("user", " "), "the question in input_ids is ' '"),
        (("a", OTHER), "special token '<|endoftext|>'"),
        (("a", *turn("user", "b")), "no whole turns"),
        ((*turn("user", "b"), "c"), "no whole turns"),
        ((START, "user\nb"), "no whole turns"),
        ((END,), "no whole turns"),
        ((START, "user\nb", REF), "no whole turns"),
        ((*turn("user", "b"), START, "assistant\nbegun"), "no whole turns"),
        (turn("assistant", "b"), "does not end with a user's turn"),
        (turn("system", "b"), "does not end with a user's turn"),
        ((*turn("tool", "b"), *turn("user", "c")), "a turn of 'tool'"),
    ],
    ids=str,
)
def test_what_is_no_prompt_is_refused(parts, words):
    with pytest.raises(ConfigError, match=words.replace("|", r"\|")):
        read_prompt(TOKENIZER, ids(*parts))


def test_settings_come_from_the_call_then_the_models_own():
    own = GenerationConfig(eos_token_id=END, pad_token_id=OTHER, max_new_tokens=9, top_k=50)
    found = Settings.of(None, own, None, {})
    assert (found.limits, found.pad_token_id) == (InterleaveLimits(answer_tokens=9), OTHER)
    assert found.sampling() == Sampling() and not found.whole
    limits = InterleaveLimits(rounds=2, answer_tokens=5)
    given = GenerationConfig(do_sample=True, temperature=0.5, stop_strings="x", eos_token_id=END)
    found = Settings.of(given, own, limits, {"top_p": 0.9, "tokenizer": object()})
    assert found.limits == limits and found.stops == ("x",) and found.pad_token_id == OTHER
    torch.manual_seed(3)
    drawn = found.sampling(), found.sampling()
    assert {(each.temperature, each.top_p) for each in drawn} == {(0.5, 0.9)}
    assert drawn[0].seed != drawn[1].seed
    assert own.top_k == 50 and given.top_p is None  # neither is changed
    with pytest.raises(ConfigError, match="no_repeat_ngram_size"):
        Settings.of(None, own, None, {"no_repeat_ngram_size": 2})


def test_answers_follow_their_prompts():
    view = encode_in_memory(tiny_model(), tiny_tokenizer(), tiny_documents())
    rounds = (RoundReport(Selection({}, []), "[17]", (17,)),)
    answers = [
        Answer("?", "generate", "", "", rounds, (), 0.1, ids=(7, 8, 9)),
        Answer("?", "generate", "", "", (), (), 0.1, ids=(5,)),
    ]
    settings = Settings.of(None, GenerationConfig(pad_token_id=1), None, {})
    found = output(torch.tensor([[3, 4], [0, 6]]), answers, view, settings)
    assert found.sequences.tolist() == [[3, 4, 7, 8, 9], [0, 6, 5, 1, 1]]
    assert [[source.number for source in each] for each in found.sources] == [[17], []]
    assert found.answers == answers
