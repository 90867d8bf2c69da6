"""A chat request, checked: OpenAI's fields, with the memory's extension."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from msa_train.memory.engine.interleave import InterleaveLimits, Mode
from msa_train.memory.engine.sampling import Sampling
from msa_train.serving.errors import ApiError, bad_request
from msa_train.serving.schemas import Filter, Strict, check_text, parsed

_MAX_TOKENS = 1 << 20  # a larger number is a mistake
_MAX_MESSAGES = 10_000  # to read more would keep everybody waiting
_MAX_ROUNDS = 16
_SYSTEM = ("system", "developer")
# Field -> the values that change nothing and are accepted; any other is refused: the answer would
# not mean what was asked for.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),  # nothing to choose from: tools are refused
    "function_call": ("none", "auto"),
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
_UNSUPPORTED_IN_MESSAGE = ("tool_calls", "function_call", "audio", "refusal")


class ContentPart(BaseModel):
    """Other keys (cache_control, ...) are accepted and not used."""

    model_config = ConfigDict(extra="ignore", strict=True)
    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart] | None = None

    @property
    def text(self) -> str:
        """Empty for an assistant that said nothing."""
        if isinstance(self.content, list):
            return "\n".join(part.text or "" for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    include_usage: bool = False


class MemoryOptions(Strict):
    """retrieval: None for the server's usual one. rounds: of retrieval, at most; None: as many as
    the engine allows."""

    bank: str | None = None
    retrieval: Mode | None = None
    filter: Filter | None = None
    rounds: Annotated[int, Field(ge=1, le=_MAX_ROUNDS)] | None = None


class ChatRequest(BaseModel):
    """Fields without effect on the answer (user, store, ...) are accepted and not used."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=_MAX_MESSAGES)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    memory: MemoryOptions | None = None

    @property
    def question(self) -> str:
        return self.messages[-1].text

    @property
    def all_text(self) -> str:
        return "".join(each.text for each in self.messages)

    @property
    def instructions(self) -> str:
        """System and developer messages, wherever they stand: they come before the question."""
        return "\n".join(each.text for each in self.messages if each.role in _SYSTEM)

    @property
    def earlier(self) -> tuple[tuple[str, str], ...]:
        """(role, text) of the turns before the question in which something was said."""
        turns = [each for each in self.messages[:-1] if each.role not in _SYSTEM]
        return tuple((each.role, each.text) for each in turns if each.text)

    @property
    def options(self) -> MemoryOptions:
        return self.memory or MemoryOptions()

    def limits(self, answer_tokens: int) -> InterleaveLimits:
        """answer_tokens: the most that an answer may have, whatever was asked for."""
        asked = self.max_completion_tokens or self.max_tokens or InterleaveLimits.answer_tokens
        rounds = {} if self.options.rounds is None else {"rounds": self.options.rounds}
        return InterleaveLimits(answer_tokens=min(asked, answer_tokens), **rounds)

    @property
    def sampling(self) -> Sampling:
        """Greedy unless a temperature is given. Without a seed, every request draws anew."""
        top_p = 1.0 if self.top_p is None else self.top_p
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return Sampling(self.temperature or 0.0, top_p, seed)

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


def chat_request(body: bytes, model: str) -> ChatRequest:
    """A body, checked. model: the name of the one that is served.

    Raises ApiError 400 for what is wrong or not supported, 404 for another model's name.
    """
    request = parsed(ChatRequest, body)
    for field, value in (request.model_extra or {}).items():
        if field in _UNSUPPORTED and value is not None and value not in _UNSUPPORTED[field]:
            raise bad_request(f"{field} is not supported", "unsupported_parameter")
    if request.model not in (None, model):
        raise ApiError(
            404, "model_not_found", f"there is no model {request.model!r}: it is {model!r}"
        )
    _check_messages(request.messages)
    if len(request.stops) > 4 or not all(request.stops):
        raise bad_request("stop: give one to four texts that are not empty")
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options: only for stream: true")
    return request


def _check_messages(messages: Sequence[ChatMessage]) -> None:
    for place, message in enumerate(messages):
        _check_content(message, f"messages[{place}].content")
        for field in _UNSUPPORTED_IN_MESSAGE:
            if (message.model_extra or {}).get(field):
                problem = f"messages[{place}].{field} is not supported"
                raise bad_request(problem, "unsupported_parameter")
    if messages[-1].role != "user":
        raise bad_request(f"messages: the last one is the {messages[-1].role}'s, not the user's")
    check_text(messages[-1].text, f"messages[{len(messages) - 1}].content")


def _check_content(message: ChatMessage, field: str) -> None:
    if message.content is None and message.role != "assistant":
        raise bad_request(f"{field} is missing: give a text")
    parts = message.content if isinstance(message.content, list) else []
    for place, part in enumerate(parts):
        if part.type != "text":
            raise bad_request(
                f"{field}[{place}] is of type {part.type[:80]!r}: this model reads text alone, no "
                'images, sound or files; send {"type": "text", "text": ...}',
                "unsupported_content",
            )
        if part.text is None:
            raise bad_request(f"{field}[{place}].text is missing: give a text")
