"""Chat requests that are refused, by the name of what is wrong; and what the others ask for."""

import json

import pytest

from msa_train.memory.engine.interleave import InterleaveLimits
from msa_train.serving.chat_request import chat_request


def user(content):
    return {"messages": [{"role": "user", "content": content}]}


OK = user("x")
BAD = [
    (b"", "Invalid JSON"),
    (b"{", "Invalid JSON"),
    (b"[]", "should be an object"),
    (b"[" * 10_000, "recursion limit"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "Invalid JSON"),
    (b'{"messages": [{"role": "user", "content": "\xff"}]}', "Invalid JSON"),
    ({}, "messages: Field required"),
    ({"messages": []}, "messages"),
    ({"messages": "x"}, "messages"),
    ({"messages": user("x")["messages"] * 10_001}, "messages: List should have at most 10000"),
    (user(""), "messages[0].content is blank"),
    (user(" \n"), "messages[0].content is blank"),
    (user(None), "messages[0].content"),
    (user([{"type": "text", "text": "x"}, {"type": "text"}]), "content[1].text is missing"),
    (user([{"type": "text", "text": 3}]), "messages[0].content"),
    (user([{"text": "x"}]), "messages[0].content"),
    (user(3), "messages[0].content"),
    (OK | {"tool_choice": "required"}, "tool_choice is not supported"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "not the user's"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    (OK | {"n": 2}, "n is not supported"),
    (OK | {"logprobs": True}, "logprobs is not supported"),
    (OK | {"top_logprobs": 3}, "top_logprobs is not supported"),
    (OK | {"tools": [{}]}, "tools is not supported"),
    (OK | {"functions": [{}]}, "functions is not supported"),
    (OK | {"logit_bias": {"1": 2}}, "logit_bias is not supported"),
    (OK | {"presence_penalty": 1}, "presence_penalty is not supported"),
    (OK | {"response_format": {"type": "json_object"}}, "response_format is not supported"),
    (OK | {"modalities": ["audio"]}, "modalities is not supported"),
    (OK | {"max_tokens": 0}, "max_tokens"),
    (OK | {"max_tokens": 10**9}, "max_tokens"),
    (OK | {"max_tokens": "5"}, "max_tokens"),
    (OK | {"max_completion_tokens": -1}, "max_completion_tokens"),
    (OK | {"temperature": -1}, "temperature"),
    (OK | {"temperature": 3}, "temperature"),
    (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temperature"),
    (OK | {"top_p": 0}, "top_p"),
    (OK | {"top_p": 1.5}, "top_p"),
    (OK | {"seed": 1.5}, "seed"),
    (OK | {"seed": 2**64}, "seed"),
    (OK | {"stop": [""]}, "stop"),
    (OK | {"stop": ["a"] * 5}, "stop"),
    (OK | {"stop": [1]}, "stop"),
    (OK | {"stream": "yes"}, "stream"),
    (OK | {"stream_options": {"include_usage": True}}, "stream_options"),
    (OK | {"memory": {"retrieval": "guess"}}, "memory.retrieval"),
    (OK | {"memory": {"rounds": 0}}, "memory.rounds"),
    (OK | {"memory": {"rounds": 99}}, "memory.rounds"),
    (OK | {"memory": {"banks": "notes"}}, "memory.banks"),
    (OK | {"memory": {"filter": {"id": "x"}}}, "memory.filter.id"),
    (OK | {"memory": {"filter": {"numbers": [-1]}}}, "memory.filter.numbers"),
    (OK | {"memory": {"bank": 3}}, "memory.bank"),
]


@pytest.mark.parametrize(("body", "said"), BAD, ids=[str(body)[-40:] for body, _ in BAD])
def test_bad_requests_are_refused_by_name(http, body, said):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    response = http.post("/v1/chat/completions", content=content, headers=headers)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert said in error["message"] and error["type"] == "invalid_request_error"
    assert error.keys() == {"message", "type", "code"}


def asked(**fields):
    return chat_request(json.dumps(OK | fields).encode(), "tiny")


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "refusal"])
def test_what_is_no_text_is_refused_in_a_sentence(http, kind):
    parts = [{"type": "text", "text": "x"}, {"type": kind, kind: {"url": "data:,"}}]
    response = http.post("/v1/chat/completions", json=user(parts))
    error = response.json()["error"]
    assert response.status_code == 400 and error["code"] == "unsupported_content"
    said = f"messages[0].content[1] is of type '{kind}': this model reads text alone"
    assert error["message"].startswith(said)


def test_what_clients_add_without_effect_is_taken():
    """As LangChain, LiteLLM and agents send them."""
    part = {"type": "text", "text": "two", "cache_control": {"type": "ephemeral"}, "id": 1}
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": []},
        {"role": "assistant"},
        {"role": "user", "content": [part]},
    ]
    request = asked(messages=messages, tools=[], tool_choice="auto", function_call="auto")
    assert request.question == "two"
    assert request.earlier == (("user", "one"),)


def test_an_answers_limits_are_what_was_asked_for_or_the_most_there_is():
    assert asked().limits(512) == InterleaveLimits()
    assert asked(max_tokens=7, memory={"rounds": 2}).limits(512) == InterleaveLimits(
        answer_tokens=7, rounds=2
    )
    assert asked(max_tokens=7, max_completion_tokens=1000).limits(512).answer_tokens == 512


def test_instructions_earlier_turns_and_the_question_are_told_apart():
    messages = [
        {"role": "user", "content": "one"},
        {"role": "developer", "content": "briefly"},
        {"role": "assistant", "content": [{"type": "text", "text": "1"}]},
        {"role": "system", "content": "in verse"},
        {"role": "user", "content": "two"},
    ]
    request = chat_request(json.dumps({"messages": messages}).encode(), "tiny")
    assert request.question == "two" and request.instructions == "briefly\nin verse"
    assert request.earlier == (("user", "one"), ("assistant", "1"))


def test_a_seed_is_drawn_where_none_is_given():
    assert asked(seed=5).sampling == asked(seed=5).sampling
    assert asked().sampling != asked().sampling and asked().sampling.temperature == 0
