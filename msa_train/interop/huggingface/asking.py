"""What `generate` is given, as requests to a memory; and their answers, as `generate` returns them.

A prompt is the question's text, or a conversation in the chat template's form. Either is asked in
the protocol of SPEC section 4, exactly as `msa ask` and the server ask it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from data_pipeline.protocol import CONTROL_TOKENS, IM_END, IM_START, Turn
from data_pipeline.schema import Document
from data_pipeline.tokenizer import Tokenizer
from msa_train.errors import ConfigError
from msa_train.memory.engine.events import Answer
from msa_train.memory.engine.interleave import InterleaveLimits
from msa_train.memory.engine.sampling import Sampling
from msa_train.memory.search.view import MemoryView

_SYSTEM = ("system", "developer")
# Settings that are honoured, and those that change no token of an answer.
_HONOURED = {
    "max_new_tokens", "do_sample", "temperature", "top_p", "stop_strings", "pad_token_id",
    "return_dict_in_generate",
}  # fmt: skip
_WITHOUT_EFFECT = {"use_cache", "bos_token_id", "disable_compile", "transformers_version"}
# Of all others: what means the same as not to give them.
_NEUTRAL: dict[str, Any] = {
    "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0, "length_penalty": 1.0, "typical_p": 1.0, "min_length": 0,
    "min_new_tokens": 0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "diversity_penalty": 0.0, "min_p": 0.0, "top_k": 0,
}  # fmt: skip
_INSTEAD = {
    "max_length": "it would count the prompt and all that is read; give max_new_tokens",
    "streamer": "MemoryEngine.stream (msa_train/memory/engine) gives the events of an answer",
    "eos_token_id": "the protocol's control tokens end an answer; give stop_strings",
    "num_return_sequences": "repeat the prompt in the batch",
}


@dataclass
class MemoryGenerateOutput(ModelOutput):
    """What `generate` returns with a memory and return_dict_in_generate.

    sequences [batch, columns]: the prompt as given, then the tokens of the answer, padded.
    answers: one `Answer` each, with its rounds: what every router layer selected and its scores,
    the ids written, the documents read. sources: the documents whose texts were read, each.
    """

    sequences: Tensor | None = None
    answers: list[Answer] | None = None
    sources: list[list[Document]] | None = None


@dataclass(frozen=True)
class Prompt:
    """A question, what stands before it, and earlier turns; as a chat request has them."""

    question: str
    instructions: str = ""
    earlier: tuple[Turn, ...] = ()


def read_prompt(tokenizer: Tokenizer, ids: Sequence[int]) -> Prompt:
    """The prompt of token ids without padding: a text, or a conversation up to its question.

    System turns become instructions, earlier ones of user and assistant stay turns. A leading
    special token that is no control token (begin of text) is left out. Raises ConfigError.
    """
    parts = list(_parts(tokenizer, ids))
    if len(parts) <= 1 and not any(control for control, _ in parts):
        question = "".join(text for _, text in parts)
        return Prompt(_asked(question))
    turns = list(_turns(parts))
    instructions = "\n".join(text for role, text in turns if role in _SYSTEM)
    spoken = tuple(turn for turn in turns if turn[0] not in _SYSTEM)
    for role, _ in spoken:
        if role not in ("user", "assistant"):
            raise ConfigError(f"input_ids have a turn of {role!r}: only system, user and assistant")
    if not spoken or spoken[-1][0] != "user":
        raise ConfigError(
            "the conversation in input_ids does not end with a user's turn: with a memory, the "
            "last turn is the question"
        )
    return Prompt(_asked(spoken[-1][1]), instructions, spoken[:-1])


def _asked(question: str) -> str:
    if not question.strip():
        raise ConfigError(f"the question in input_ids is {question!r}: ask something")
    return question


def _parts(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[tuple[str, str]]:
    """(control token, "") and ("", text) in turn. Raises ConfigError for other special tokens."""
    spelled = ((tokenizer.control_ids(name), name) for name in CONTROL_TOKENS)
    control = {one[0]: name for one, name in spelled if len(one) == 1}
    if ids and ids[0] in tokenizer.special - control.keys():
        ids = ids[1:]
    for i in ids:
        if i in tokenizer.special - control.keys():
            raise ConfigError(
                f"input_ids have the special token {tokenizer.decode([i])!r}, which is no part of "
                "a question: tokenise the question's text alone (add_special_tokens=False), and "
                "give the attention_mask of what is padded"
            )
    for name, run in groupby(ids, lambda i: control.get(i, "")):
        if name:
            yield from ((name, "") for _ in run)
        else:
            yield "", tokenizer.decode(run)


def _turns(parts: list[tuple[str, str]]) -> Iterator[Turn]:
    """Turns in the chat template's form; the answer's head at the end is none."""
    left = list(reversed(parts))

    def take(control: str) -> str | None:
        """The next part if it is this control token ("": text), else None."""
        return left.pop()[1] if left and left[-1][0] == control else None

    while left:
        if take(IM_START) is None:
            raise _malformed()
        role, _, text = (take("") or "").partition("\n")
        if take(IM_END) is None:
            if left or role != "assistant" or text:
                raise _malformed()
            return
        yield role, text
        if left and left[-1][0] == "" and (take("") or "").strip():
            raise _malformed()


def _malformed() -> ConfigError:
    return ConfigError(
        "input_ids have control tokens, but no whole turns as the chat template writes them: give "
        "the question's text, or apply_chat_template(messages, add_generation_prompt=True)"
    )


@dataclass(frozen=True)
class Settings:
    """Of one call of `generate` with a memory.

    pad_token_id: after answers that are shorter than the longest. whole: return more than tokens.
    """

    limits: InterleaveLimits
    sample: bool
    temperature: float
    top_p: float
    stops: tuple[str, ...]
    pad_token_id: int
    whole: bool

    @classmethod
    def of(
        cls,
        given: GenerationConfig | None,
        own: GenerationConfig,
        limits: InterleaveLimits | None,
        arguments: Mapping[str, Any],
    ) -> Settings:
        """From a generation config, the model's `own` where it says nothing, and arguments.

        Raises ConfigError, naming it, for what a memory cannot honour.
        """
        config = copy.deepcopy(own if given is None else given)
        for name, value in config.update(**arguments).items():
            if name != "tokenizer" and value is not None and value is not False:
                raise _unsupported(name, value)
        _check(config, own)
        limits = limits or InterleaveLimits()
        if config.max_new_tokens is not None:
            limits = replace(limits, answer_tokens=config.max_new_tokens)
        stops = config.stop_strings or ()
        pads = [config.pad_token_id, own.pad_token_id, 0]
        return cls(
            limits,
            bool(config.do_sample),
            1.0 if config.temperature is None else config.temperature,
            1.0 if config.top_p is None else config.top_p,
            (stops,) if isinstance(stops, str) else tuple(stops),
            next(pad for pad in pads if pad is not None),
            bool(config.return_dict_in_generate),
        )

    def sampling(self) -> Sampling:
        """Of one request; its seed is drawn from torch's generator, so that set_seed rules it."""
        if not self.sample:
            return Sampling()
        return Sampling(self.temperature, self.top_p, int(torch.randint(1 << 62, ())))


def _check(config: GenerationConfig, own: GenerationConfig) -> None:
    for name, value in vars(config).items():
        if name.startswith("_") or name in _HONOURED | _WITHOUT_EFFECT:
            continue
        if value is None or value is False or value == _NEUTRAL.get(name):
            continue
        if name == "top_k" and not config.do_sample:
            continue
        if name == "eos_token_id" and value == own.eos_token_id:
            continue
        raise _unsupported(name, value)


def _unsupported(name: str, value: Any) -> ConfigError:
    shown = value if isinstance(value, int | float | str) else type(value).__name__
    instead = _INSTEAD.get(name, "leave it out, or generate without a memory")
    return ConfigError(f"generate with a memory: {name} ({shown}) cannot be honoured; {instead}")


def output(
    prompts: Tensor, answers: Sequence[Answer], view: MemoryView, settings: Settings
) -> MemoryGenerateOutput:
    """Answers [batch] after their prompts [batch, columns]."""
    longest = max(len(answer.ids) for answer in answers)
    written = prompts.new_full((len(answers), longest), settings.pad_token_id)
    for row, answer in enumerate(answers):
        written[row, : len(answer.ids)] = prompts.new_tensor(answer.ids)
    sources = [[view.documents[number] for number in answer.evidence] for answer in answers]
    return MemoryGenerateOutput(torch.cat([prompts, written], 1), list(answers), sources)
