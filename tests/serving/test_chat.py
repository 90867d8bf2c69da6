"""Chat completions: the official client, unchanged, over a real socket; and what is refused."""

import json

import openai
import pytest

from msa_train.errors import RankError
from msa_train.memory.search.hybrid import WordIndexes
from tests.serving.running import running

QUESTION = {"role": "user", "content": "What is the code of the harbour?"}
FROM_MEMORY, ROUTER = {"retrieval": "memory"}, {"retrieval": "router"}


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(
        base_url=f"{served[0].base_url}/v1", api_key="none", max_retries=0, timeout=30
    ) as found:
        yield found


def ask(client, messages=(QUESTION,), memory=FROM_MEMORY, **settings):
    settings = {"max_tokens": 12, **settings}
    return client.chat.completions.create(
        model="tiny", messages=list(messages), extra_body={"memory": memory}, **settings
    )


def test_the_official_client_is_answered(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "msa"
    found = ask(client)
    assert found.choices[0].message.role == "assistant"
    assert found.choices[0].message.content
    assert found.choices[0].finish_reason == "length"
    assert found.usage.completion_tokens == 12
    assert found.usage.total_tokens == found.usage.prompt_tokens + 12
    memory = found.model_extra["memory"]
    assert memory["bank"] == "notes" and memory["seconds"] > 0
    (only,) = memory["rounds"]
    assert set(only["layers"]) == {"2", "3"} and len(only["layers"]["2"]) == 3
    assert only["layers"]["2"][0].keys() == {"number", "score", "chunk", "gate"}
    assert only["voted"][0].keys() == {"number", "score"}


@pytest.mark.parametrize("memory", [FROM_MEMORY, ROUTER])
def test_a_stream_says_what_the_whole_answer_says(client, memory):
    whole = ask(client, memory=memory)
    chunks = list(ask(client, memory=memory, stream=True, stream_options={"include_usage": True}))
    *said, last = chunks
    assert all(chunk.id == last.id and chunk.usage is None for chunk in said)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in said)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in said if c.choices[0].finish_reason] == ["length"]
    assert last.choices == [] and last.usage == whole.usage
    events = [e for chunk in said if (e := (chunk.model_extra or {}).get("memory"))]
    kinds = [event["event"] for event in events]
    rounds = whole.model_extra["memory"]["rounds"]
    assert kinds.count("routed") == len(rounds) and kinds[-1] == "finished"
    assert events[0]["layers"] == rounds[0]["layers"] and events[0]["round"] == 1
    assert events[-1]["rounds"] == rounds
    if memory["retrieval"] == "router":
        evidence = next(e for e in events if e["event"] == "evidence")["documents"]
        assert [each["number"] for each in evidence] == rounds[0]["evidence"]
        assert evidence[0].keys() == {"number", "id", "title"}


def test_written_ids_are_streamed_as_they_come(http):
    body = {
        "messages": [QUESTION],
        "stream": True,
        "max_completion_tokens": 3,
        "memory": {"rounds": 1},
    }
    kinds, written = [], ""
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:]).get("memory", {})
                kinds.append(event.get("event"))
                written += event.get("text", "")
            if kinds.count("writes") > 5:
                break
    assert "routed" in kinds and written


def test_settings_that_change_nothing_are_taken(client, http):
    plain = ask(client).choices[0].message.content
    with_more = ask(
        client, user="me", n=1, store=False, presence_penalty=0, seed=3, temperature=0,
        response_format={"type": "text"}, parallel_tool_calls=True, max_completion_tokens=12,
    )  # fmt: skip
    assert with_more.choices[0].message.content == plain
    bare = {"messages": [QUESTION], "max_tokens": 12, "memory": FROM_MEMORY}
    nulls = {"tools": None, "stop": None, "stream": None, "temperature": None, "logprobs": False}
    answered = http.post("/v1/chat/completions", json=bare | nulls).json()
    assert answered["choices"][0]["message"]["content"] == plain


def test_text_in_parts_is_one_text(client):
    parts = [{"type": "text", "text": QUESTION["content"]}]
    found = ask(client, [{"role": "user", "content": parts}])
    assert found.choices[0].message.content == ask(client).choices[0].message.content


def test_system_messages_and_earlier_turns_are_read(client):
    asked = ask(client)
    assert asked.usage.prompt_tokens > 100
    told = [{"role": "system", "content": "Answer in verse."}, QUESTION]
    assert ask(client, told).usage.prompt_tokens > asked.usage.prompt_tokens
    turns = [QUESTION, {"role": "assistant", "content": "4711"}, QUESTION]
    assert ask(client, turns).usage.prompt_tokens > asked.usage.prompt_tokens + 10


def test_an_answer_is_drawn_by_its_seed(client):
    drawn = [text(ask(client, temperature=1.5, seed=seed, max_tokens=30)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    unseeded = {text(ask(client, temperature=2, max_tokens=30)) for _ in range(4)}
    assert len(unseeded) > 1


def test_an_answer_ends_before_its_stop_string(client):
    whole = text(ask(client, max_tokens=30))
    middle = len(whole) // 2
    stop = whole[middle : middle + 2]
    for stops in (stop, ["never there", stop]):
        found = ask(client, max_tokens=30, stop=stops)
        assert text(found) == whole[: whole.index(stop)].rstrip()
        assert found.choices[0].finish_reason == "stop"
    streamed = ask(client, max_tokens=30, stop=stop, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in streamed]
    assert "".join(pieces) == text(found)


def test_an_answer_has_a_quarter_of_the_context_at_most(client):
    found = ask(client, max_tokens=100_000, temperature=2, seed=3)
    assert found.usage.completion_tokens <= 512


def test_a_question_that_does_not_fit_is_refused(client):
    for words in (1200, 30_000):  # counted in tokens, and seen by its bytes alone
        long = {"role": "user", "content": "Why? " * words}
        with pytest.raises(openai.BadRequestError, match="room for 2,048") as caught:
            ask(client, [long])
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.APIError, match="room for 2,048") as caught:
            list(ask(client, [long], stream=True))
        assert caught.value.code == "context_length_exceeded"


def test_a_filter_says_which_documents_are_read(client, http):
    only = {"numbers": [3, 17], "ids": ["d17", "d40"]}
    for retrieval in ("memory", "router"):
        found = ask(client, memory={"retrieval": retrieval, "filter": only})
        for each in found.model_extra["memory"]["rounds"]:
            layers = [[one["number"] for one in layer] for layer in each["layers"].values()]
            assert layers == [[17], [17]] and [v["number"] for v in each["voted"]] == [17]
    search = {"query": "x", "filter": {"added_after": 1}}
    assert http.post("/v1/memory/banks/notes/search", json=search).json() == {"documents": []}


@pytest.mark.parametrize("retrieval", ["generate", "router", "memory"])
def test_nothing_to_answer_from_is_said_and_nothing_invented(client, http, retrieval):
    http.post("/v1/memory/banks", json={"name": "empty"})
    for bank, only, said in (
        ("notes", {"numbers": [5]}, "no document matches the filter"),
        ("empty", None, "no document is in it yet"),
    ):
        memory = {"retrieval": retrieval, "bank": bank, "filter": only}
        found = ask(client, memory=memory)
        assert text(found) == f"There is nothing to answer from in bank '{bank}': {said}."
        assert found.choices[0].finish_reason == "stop" and found.usage.total_tokens == 0
        told = found.model_extra["memory"]
        assert told["finish_reason"] == "no_documents" and told["rounds"] == []
        chunks = list(ask(client, memory=memory, stream=True))
        assert "".join(each.choices[0].delta.content or "" for each in chunks) == text(found)
        last = [e for c in chunks if (e := (c.model_extra or {}).get("memory"))][-1]
        assert (last["event"], last["finish_reason"]) == ("finished", "no_documents")
        assert chunks[-1].choices[0].finish_reason == "stop"
    assert ask(client).model_extra["memory"]["finish_reason"] == "length"


def test_a_header_says_what_was_read(client):
    """For clients that drop the field `memory`."""
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=[QUESTION], max_tokens=4, extra_body={"memory": ROUTER}
    )
    rounds = raw.parse().model_extra["memory"]["rounds"]
    read = [number for each in rounds for number in each["evidence"]]
    voted = [each["number"] for each in rounds[0]["voted"]]
    said = {"bank": "notes", "voted": voted, "evidence": read}
    assert read and json.loads(raw.headers["x-msa-memory"]) == said


def text(completion):
    return completion.choices[0].message.content


def test_what_is_not_known_is_named(client):
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.chat.completions.create(model="gpt", messages=[QUESTION])
    with pytest.raises(openai.NotFoundError, match="no bank 'nothing'"):
        ask(client, memory={"bank": "nothing"})
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.models.retrieve("gpt")
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        function = {"type": "function", "function": {"name": "f", "parameters": {}}}
        ask(client, tools=[function])


def test_what_of_openais_api_is_not_there_is_said(client):
    calls = (
        lambda: client.responses.create(model="tiny", input="x"),
        lambda: client.embeddings.create(model="tiny", input="x"),
        lambda: client.completions.create(model="tiny", prompt="x"),
    )
    for call in calls:
        with pytest.raises(openai.NotFoundError, match="POST /v1/chat/completions") as caught:
            call()
        assert caught.value.body.keys() == {"message", "type", "code"}


OK = {"messages": [{"role": "user", "content": "x"}]}


def test_answers_that_fail_say_so_without_the_programs_inside(tmp_path):
    class Broken:
        error = RuntimeError("/secret/path is broken")

        def submit(self, request):
            return self

        def __iter__(self):
            raise self.error

        def cancel(self):
            pass

        def stop(self):
            pass

    broken = Broken()
    with running(tmp_path, engine=broken) as (client, _):
        whole = client.post("/v1/chat/completions", json=OK)
        stream = client.post("/v1/chat/completions", json=OK | {"stream": True})
        broken.error = RankError(f"rank 1 was killed (searching {tmp_path}/notes)")
        rank = client.post("/v1/chat/completions", json=OK)
        assert rank.status_code == 503 and rank.headers["Retry-After"]
        message = "rank 1 was killed (searching bank 'notes')"
        assert rank.json()["error"]["message"] == message
        streamed = client.post("/v1/chat/completions", json=OK | {"stream": True})
        assert message in streamed.text
    assert whole.status_code == 500 and "secret" not in whole.text
    assert stream.status_code == 200 and '"internal_error"' in stream.text
    assert "secret" not in stream.text and "[DONE]" not in stream.text


def test_the_server_says_who_names_documents_where_a_request_does_not(tmp_path):
    with running(tmp_path, retrieval="memory") as (http, _):
        assert http.get("/healthz").json()["retrieval"] == "memory"
        assert http.get("/v1/memory/banks").json()["retrieval"] == "memory"
        body = {"messages": [QUESTION], "max_tokens": 2}
        for asked, used in ({}, "memory"), (ROUTER, "router"):
            answer = http.post("/v1/chat/completions", json=body | {"memory": asked}).json()
            assert answer["memory"]["retrieval"] == used


def test_words_choose_texts_with_the_router(tmp_path):
    """Through additions, a filter and a removal, whole and streamed."""
    text, words = "The lighthouse keeper said: sleep. ", ("harbour", "rain", "cranes")
    others = [{"text": f"{text * 3}{words[n % 3]} {n}"} for n in range(20)]
    body = {
        "messages": [{"role": "user", "content": "Where is Zanzibar, of the harbour?"}],
        "max_tokens": 2,
    }
    with running(tmp_path, words=WordIndexes()) as (http, _):
        assert http.get("/healthz").json()["hybrid"] == "bm25"

        def routed(**memory):
            given = body | {"memory": {"retrieval": "router"} | memory}
            return http.post("/v1/chat/completions", json=given).json()["memory"]["rounds"][0]

        http.post("/v1/memory/banks/notes/documents", json={"documents": others})
        needle = {"text": text * 9, "title": "Zanzibar", "id": "z"}
        given = http.post("/v1/memory/banks/notes/documents", json={"documents": [needle]})
        (number,) = given.json()["numbers"]
        found = routed()
        first = found["fused"][0]
        assert first.keys() == {"number", "score", "vote", "bm25"}
        assert first["number"] == number in found["evidence"] and first["bm25"] > 0
        assert number not in [each["number"] for each in found["voted"]]
        scores = [each["score"] for each in found["fused"]]
        assert scores == sorted(scores, reverse=True) and len(scores) > len(found["voted"])
        stream = http.post(
            "/v1/chat/completions",
            json=body | {"memory": {"retrieval": "router"}, "stream": True},
        )
        events = [json.loads(line[6:]) for line in stream.text.splitlines() if '"routed"' in line]
        assert events[0]["memory"]["fused"] == found["fused"] and "fused" not in events[1]["memory"]
        some = routed(filter={"numbers": [2, 3, 17]})
        assert {each["number"] for each in some["fused"]} == {2, 3, 17}
        assert "fused" not in routed(retrieval="memory")
        http.delete(f"/v1/memory/banks/notes/documents/{number}")
        assert number not in [each["number"] for each in routed()["fused"]]
