"""The memory's endpoints: banks and documents come, are found by the next question, and go."""

import json
import random
import threading
from itertools import pairwise

import pytest

from data_pipeline.protocol import document_pieces
from data_pipeline.schema import Document
from msa_train.memory.bank.build import add_documents
from msa_train.memory.bank.writer import BankWriter
from msa_train.serving.errors import ClientGone
from tests.memory.tiny import FINGERPRINT, TEXTS, tiny_model, tiny_tokenizer
from tests.serving.running import leave, running, wait_for
from tests.serving.slow_engine import SlowEngine

BANKS = "/v1/memory/banks"
NOTES = f"{BANKS}/notes"
NEW = {
    "id": "new",
    "title": "A title",
    "text": "The code of the mill is 2222.",
    "metadata": [1, "é"],
}


@pytest.fixture
def own(tmp_path):
    """(client, server, folder) that a test may change."""
    with running(tmp_path) as (client, server):
        yield client, server, tmp_path


def numbers(client, bank="notes", **options):
    listed = client.get(f"{BANKS}/{bank}/documents", params=options).json()
    return [document["number"] for document in listed["documents"]]


def found(client, query, bank="notes", **more):
    response = client.post(f"{BANKS}/{bank}/search", json={"query": query, **more})
    assert response.status_code == 200, response.text
    return [document["number"] for document in response.json()["documents"]]


def test_documents_are_added_updated_removed_and_found_at_once(own):
    client, _, _ = own
    added = client.post(f"{NOTES}/documents", json={"documents": [NEW, {"text": "No id."}]})
    assert added.json() == {"added": 2, "numbers": [123457, 123458]}
    stored = client.get(f"{NOTES}/documents/123457").json()
    assert {name: stored[name] for name in NEW} == NEW and stored["added"] > 1.7e12
    assert 123457 in found(client, NEW["text"])
    assert client.get(f"{NOTES}/documents/123458").json()["id"] == ""
    for id in ("", "123458"):
        assert numbers(client, id=id) == []
        taken = client.post(f"{NOTES}/documents/remove", json={"ids": [id]})
        assert taken.status_code == 404
    assert found(client, "No id.", filter={"ids": [""]}) == []

    changed = {"documents": [NEW | {"text": "The code of the mill is 3333."}]}
    assert client.put(f"{NOTES}/documents", json=changed).json()["numbers"] == [123459]
    assert numbers(client, id="new") == [123459]
    assert client.get(f"{NOTES}/documents/123457").status_code == 404
    assert client.delete(f"{NOTES}/documents/123459").json() == {"removed": 1}
    assert 123459 not in found(client, NEW["text"])
    gone = client.post(f"{NOTES}/documents/remove", json={"ids": ["d2"], "numbers": [3, 3]})
    assert gone.json() == {"removed": 2}
    info = client.get(NOTES).json()
    assert (info["documents"], info["removed"], info["name"]) == (6, 4, "notes")


def test_all_or_nothing_goes(own):
    client, _, _ = own
    before = client.get(NOTES).json()
    for body in ({"ids": ["d2", "nobody"]}, {"numbers": [2, 5]}):
        response = client.post(f"{NOTES}/documents/remove", json=body)
        assert response.status_code == 404
    documents = [{"id": "fresh", "text": "x"}, {"id": "d2", "text": "x"}]
    response = client.post(f"{NOTES}/documents", json={"documents": documents})
    assert response.status_code == 409 and "'d2'" in response.json()["error"]["message"]
    response = client.put(f"{NOTES}/documents", json={"documents": documents})
    assert response.status_code == 404 and "'fresh'" in response.json()["error"]["message"]
    assert client.get(NOTES).json() == before


def test_pages_of_documents(http):
    assert numbers(http) == [2, 3, 17, 40, 41, 1000, 123456]
    page = http.get(f"{NOTES}/documents", params={"limit": 3}).json()
    assert [each["number"] for each in page["documents"]] == [2, 3, 17] and page["next"] == 17
    assert numbers(http, after=17, limit=2) == [40, 41]
    assert http.get(f"{NOTES}/documents", params={"after": 1000}).json()["next"] is None
    assert numbers(http, after=10**17) == []
    assert numbers(http, id="d17") == [17] and numbers(http, id="nobody") == []


WORDS = ["crane", "Heron", "stork", "50%", "(x)", "東京"]


@pytest.fixture(scope="module")
def drawn(served):
    """60 documents of drawn words in bank `drawn`, without those that were removed, as listed."""
    client, rng = served[0], random.Random(0)
    client.post(BANKS, json={"name": "drawn"})
    texts = [
        {
            "id": f"w{n}" if n % 3 else "",
            "title": rng.choice(["", *WORDS]),
            "text": " ".join(rng.choices(WORDS, k=rng.randrange(1, 5))),
            "metadata": {"n": n % 4, "kind": rng.choice("ab")},
        }
        for n in range(60)
    ]
    client.post(f"{BANKS}/drawn/documents", json={"documents": texts})
    client.post(f"{BANKS}/drawn/documents/remove", json={"numbers": [0, 7, 8, 31, 59]})
    return client.get(f"{BANKS}/drawn/documents", params={"limit": 500}).json()["documents"]


def matches(document, words="", filter=None):
    """What a filter and words mean, said once more."""
    ids = (filter or {}).get("ids")
    told = f"{document['title']}\n{document['text']}".casefold()
    wanted = (filter or {}).get("metadata", {})
    return (
        all(word.casefold() in told for word in words.split())
        and all(document["metadata"][key] == value for key, value in wanted.items())
        and (ids is None or (document["id"] and document["id"] in ids))
        and document["number"] in (filter or {}).get("numbers", [document["number"]])
    )


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"words": "HERON"},
        {"words": " (x) 50%  rane"},
        {"words": "nobody"},
        {"words": "東京", "filter": {"metadata": {"n": 1}}},
        {"filter": {"metadata": {"n": 2, "kind": "a"}}},
        {"filter": {"ids": ["w1", "w2", "w7", "w10", ""]}},
        {"filter": {"numbers": [0, 1, 2, 3, 500]}, "words": "r"},
    ],
)
def test_documents_that_match_are_found_with_their_number(http, drawn, asked):
    right = [each for each in drawn if matches(each, **asked)]
    for more in ({}, {"skip": 2}, {"after": 20, "skip": 3, "limit": 2}, {"skip": 10**6}):
        listing = {"after": -1, "skip": 0, "limit": 50} | more
        rest = [each for each in right if each["number"] > listing["after"]]
        expected = rest[listing["skip"] :][: listing["limit"]]
        page = http.post(f"{BANKS}/drawn/documents/find", json=asked | more).json()
        assert page["documents"] == expected and page["total"] == len(right)
        assert page["first"] == min(len(right) - len(rest) + listing["skip"], len(right))
        last = not expected or expected[-1] == right[-1]
        assert page["next"] == (None if last else expected[-1]["number"])
        if not asked:
            assert http.get(f"{BANKS}/drawn/documents", params=more).json() == page


def test_what_matches_is_removed_as_counted_or_not_at_all(own):
    client, _, _ = own
    parts = {"id": "long", "title": "Cranes", "text": "Cranes sleep. " * 1000, "metadata": {"n": 1}}
    numbered = client.post(f"{NOTES}/documents", json={"documents": [NEW, parts]}).json()["numbers"]
    asked = {"words": "crane sleep", "filter": {"numbers": numbered[:2]}}
    total = client.post(f"{NOTES}/documents/find", json=asked).json()["total"]
    assert total == 1 and len(numbered) > 2
    remove = f"{NOTES}/documents/remove"
    refused = client.post(remove, json={"matching": {**asked, "count": 2}})
    assert refused.status_code == 409 and refused.json()["error"]["code"] == "matches_changed"
    assert len(numbers(client)) == 7 + len(numbered)
    gone = client.post(remove, json={"matching": {**asked, "count": 1}})
    assert gone.json() == {"removed": len(numbered) - 1}, "a split one goes with all its parts"
    assert numbers(client, after=123456) == numbered[:1]
    everything = {"matching": {"count": 8}, "numbers": [2]}
    assert client.post(remove, json=everything).json() == {"removed": 8}
    assert numbers(client) == []


def test_a_document_is_replaced_by_its_number(own):
    client, _, _ = own
    body = {"documents": [NEW, {"text": "Nameless."}]}
    named, nameless = client.post(f"{NOTES}/documents", json=body).json()["numbers"]
    changed = {"title": "Now", "text": "The mill is closed.", "metadata": {"a": 1}}
    for number, id in ((named, "new"), (nameless, "")):
        (fresh,) = client.put(f"{NOTES}/documents/{number}", json=changed).json()["numbers"]
        stored = client.get(f"{NOTES}/documents/{fresh}").json()
        assert {name: stored[name] for name in changed} == changed and stored["id"] == id
        again = client.put(f"{NOTES}/documents/{number}", json=changed)
        assert again.status_code == 404, "somebody changed it meanwhile"
    assert numbers(client, after=123456) == [123459, 123460]
    assert numbers(client, id="new") == [123459]


@pytest.mark.parametrize("id", ["long", ""])
def test_a_split_document_is_read_whole_and_replaced_whole(own, id):
    client, _, _ = own
    text = "Cranes sleep standing. " * 1500
    body = {"documents": [{"id": id, "title": "Cranes", "text": text, "metadata": [1]}]}
    parts = client.post(f"{NOTES}/documents", json=body).json()["numbers"]
    assert len(parts) > 1
    whole = client.get(f"{NOTES}/documents/{parts[1]}/whole").json()
    assert whole["text"].split() == text.split() and whole["text"].count("\n") == len(parts) - 1
    assert (whole["parts"], whole["metadata"], whole["number"]) == (len(parts), [1], parts[1])
    shorter = {"text": "Cranes fly.", "title": ""}
    (fresh,) = client.put(f"{NOTES}/documents/{parts[1]}", json=shorter).json()["numbers"]
    assert numbers(client, after=123456) == [fresh]
    one = client.get(f"{NOTES}/documents/{fresh}/whole").json()
    assert (one["text"], one["parts"], one["id"], one["title"]) == ("Cranes fly.", 1, id, "")
    assert one["metadata"] == [1], "what is not given stays"
    emptied = {"text": "Cranes fly.", "metadata": None}
    (last,) = client.put(f"{NOTES}/documents/{fresh}", json=emptied).json()["numbers"]
    assert client.get(f"{NOTES}/documents/{last}").json()["metadata"] is None


def test_a_search_that_nobody_waits_for_stops(own, monkeypatch):
    client, server, _ = own
    begun, told = threading.Event(), threading.Event()

    def scan(bank, words, going_on):
        begun.set()
        with pytest.raises(ClientGone):
            wait_for(going_on)
        told.set()
        raise ClientGone

    monkeypatch.setattr("msa_train.serving.lookup.with_words", scan)
    body = json.dumps({"words": "x"}).encode()
    leave(client, f"{NOTES}/documents/find", body, len(body), begun.is_set)
    assert told.wait(5)
    wait_for(lambda: server._state.scanning.running == 0)


@pytest.mark.parametrize("number", [2, 17, 41, 40])
def test_chunks_lie_where_they_say(http, number):
    document = http.get(f"{NOTES}/documents/{number}").json()
    spans, text = document["chunks"], document["text"]
    pieces = document_pieces(number, text)
    assert len(spans) == -(-len(tiny_tokenizer().encode_pieces(pieces).tokens) // 4)
    assert spans[0][0] == 0 and spans[-1][1] == len(text)
    for (_, end), (start, _) in pairwise(spans):
        assert start <= end <= start + 1  # a character of several bytes may lie in two chunks


def test_search_is_bounded_and_scored(http):
    response = http.post(f"{NOTES}/search", json={"query": TEXTS[0], "limit": 2}).json()
    first, second = response["documents"]
    assert first["score"] >= second["score"] and set(first["layers"]) <= {"2", "3"}
    assert first["text"] == TEXTS[(2, 3, 17, 40, 41, 1000, 123456).index(first["number"])]


def test_banks_are_made_and_dropped(own):
    client, _, folder = own
    made = client.post(BANKS, json={"name": "mine"})
    assert made.status_code == 201 and made.json()["documents"] == 0
    told = client.get(BANKS).text + client.get(f"{BANKS}/mine").text
    assert str(folder) not in told, "where banks lie is no client's business"
    assert client.post(BANKS, json={"name": "mine"}).status_code == 409
    assert found(client, "x", "mine") == []
    ask = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    empty = client.post("/v1/chat/completions", json=ask | {"memory": {"bank": "mine"}})
    assert empty.status_code == 200, empty.text
    client.post(f"{BANKS}/mine/documents", json={"documents": [NEW]})
    assert found(client, "x", "mine") == [0]
    assert client.get("/healthz").json()["banks"] == ["notes", "mine"]
    with running(folder) as (other, _):  # it is found again by the next server
        assert other.get("/healthz").json()["banks"] == ["notes", "mine"]
    assert client.delete(f"{BANKS}/mine").json() == {"dropped": "mine"}
    assert client.get(f"{BANKS}/mine").status_code == 404
    assert list((folder / "banks").iterdir()) == []
    refused = client.delete(NOTES)
    assert refused.status_code == 403 and client.get(NOTES).status_code == 200
    assert client.delete(f"{BANKS}/nothing").status_code == 404
    assert client.post(BANKS, json={"name": "mine"}).status_code == 201


def test_a_drop_that_died_is_finished_by_the_next_server(tmp_path):
    with running(tmp_path) as (client, _):
        client.post(BANKS, json={"name": "mine"})
    (tmp_path / "banks/mine").rename(tmp_path / "banks/.mine.dropped-0123abcd")
    with running(tmp_path) as (client, _):
        assert client.get("/healthz").json()["banks"] == ["notes"]
    assert list((tmp_path / "banks").iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a b", ".hidden", "x" * 65, "a\n", "é", "-x", "x.building"],
)
def test_names_that_are_no_names(http, name):
    response = http.post(BANKS, json={"name": name})
    assert response.status_code == 400, response.text


BAD = [
    ("POST", "documents", {}, 400, "documents: Field required"),
    ("POST", "documents", {"documents": []}, 400, "documents"),
    ("POST", "documents", {"documents": [{}]}, 400, "documents[0].text"),
    ("POST", "documents", {"documents": [{"text": ""}]}, 400, "documents[0].text"),
    ("POST", "documents", {"documents": [{"text": "x"}, {"text": " \n"}]}, 400, "documents[1]"),
    ("POST", "documents", {"documents": [{"text": 1}]}, 400, "documents[0].text"),
    ("POST", "documents", {"documents": [{"text": "x", "id": 1}]}, 400, "documents[0].id"),
    ("POST", "documents", {"documents": [{"text": "x", "id": "i" * 2000}]}, 400, "documents[0].id"),
    ("POST", "documents", {"documents": [{"text": "x", "number": 1}]}, 400, "number"),
    ("PUT", "documents", {"documents": [{"text": "x", "metadata": ["m" * 65_533]}]}, 400, "65,536"),
    ("POST", "documents", {"documents": [{"text": "x", "id": "a"}] * 2}, 400, "comes twice"),
    ("PUT", "documents", {"documents": [{"text": "x"}]}, 400, "has no id"),
    ("PUT", "documents", {"documents": [{"text": "x", "id": "nobody"}]}, 404, "'nobody'"),
    ("POST", "documents/remove", {"ids": "d2"}, 400, "ids"),
    ("POST", "documents/remove", {"numbers": ["2"]}, 400, "numbers"),
    ("POST", "documents/remove", {"numbers": [-1]}, 400, "numbers"),
    ("POST", "documents/remove", {"number": [2]}, 400, "number"),
    ("POST", "documents/remove", {"numbers": [4]}, 404, "no document 4"),
    ("DELETE", "documents/4", None, 404, "no document 4"),
    ("DELETE", "documents/-1", None, 400, "number"),
    ("GET", "documents/99999999999999999999999", None, 400, "number"),
    ("GET", "documents?after=99999999999999999999999", None, 400, "after"),
    ("GET", "documents/4", None, 404, "no document 4"),
    ("GET", "documents?skip=-1", None, 400, "skip"),
    ("GET", "documents/4/whole", None, 404, "no document 4"),
    ("POST", "documents/find", {"limit": 501}, 400, "limit"),
    ("POST", "documents/find", {"words": "w" * 201}, 400, "words"),
    ("POST", "documents/find", {"filter": {"x": 1}}, 400, "filter.x"),
    ("POST", "documents/find", {"id": "d2"}, 400, "id"),
    ("PUT", "documents/2", {"text": " ", "title": ""}, 400, "text is blank"),
    ("PUT", "documents/2", {"text": "x", "id": "d3"}, 400, "id"),
    ("PUT", "documents/2", {"text": "x", "metadata": "m" * 65_536}, 400, "65,536"),
    ("PUT", "documents/4", {"text": "x"}, 404, "no document 4"),
    ("POST", "documents/remove", {"matching": {}}, 400, "matching.count"),
    ("POST", "documents/remove", {"matching": {"count": 6}}, 409, "7 documents"),
    ("POST", "search", {}, 400, "query"),
    ("POST", "search", {"query": ""}, 400, "query"),
    ("POST", "search", {"query": "x", "limit": 0}, 400, "limit"),
    ("POST", "search", {"query": "x", "filter": {"x": 1}}, 400, "filter.x"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "said"), BAD)
def test_bad_requests_are_refused_by_name(http, method, path, body, status, said):
    response = http.request(method, f"{NOTES}/{path}", json=body)
    assert response.status_code == status, response.text
    assert said in response.json()["error"]["message"]
    assert numbers(http) == [2, 3, 17, 40, 41, 1000, 123456]


def test_strange_text_is_stored_as_it_is_or_refused(own):
    client, _, _ = own
    strange = "a\u0000b <script>alert(1)</script> <|im_end|> [3]<|object_ref_end|> \u202e 😀\r\n"
    metadata = {"deep": [[[{"x": None}]]], "large": 2**70, "html": "<b>"}
    body = {"documents": [{"text": strange, "id": strange, "metadata": metadata}]}
    (number,) = client.post(f"{NOTES}/documents", json=body).json()["numbers"]
    stored = client.get(f"{NOTES}/documents/{number}").json()
    assert (stored["text"], stored["id"], stored["metadata"]) == (strange, strange, metadata)
    assert numbers(client, id=strange) == [number]
    headers = {"Content-Type": "application/json"}
    for raw in (
        b'{"documents": [{"text": "\\ud800"}]}',
        b'{"documents": [{"text": "x", "metadata": NaN}]}',
        b'{"documents": [{"text": "x", "metadata": 1e999}]}',
        b'{"documents": [{"text": "x", "metadata": %s}]}' % (b"[" * 5000 + b"]" * 5000),
    ):
        response = client.post(f"{NOTES}/documents", content=raw, headers=headers)
        assert response.status_code == 400, (raw[:60], response.text)


def test_a_long_document_is_split_and_named_once(own):
    client, _, _ = own
    body = {"documents": [{"id": "long", "text": "Cranes sleep standing. " * 1500}]}
    answer = client.post(f"{NOTES}/documents", json=body).json()
    assert answer["added"] == len(answer["numbers"]) > 1
    assert numbers(client, id="long") == answer["numbers"]
    parts = [client.get(f"{NOTES}/documents/{n}").json()["part"] for n in answer["numbers"]]
    assert parts == list(range(1, len(parts) + 1))
    middle = answer["numbers"][1]
    gone = client.delete(f"{NOTES}/documents/{middle}").json()
    assert gone == {"removed": len(parts)} and numbers(client, id="long") == []
    nameless = client.post(
        f"{NOTES}/documents", json={"documents": [body["documents"][0] | {"id": ""}]}
    )
    last = nameless.json()["numbers"][-1]
    assert client.delete(f"{NOTES}/documents/{last}").json() == {"removed": len(parts)}
    assert numbers(client) == [2, 3, 17, 40, 41, 1000, 123456]


def test_a_title_alone_is_a_text(own):
    client, _, _ = own
    body = {"documents": [{"title": "Paris", "text": " "}]}
    (number,) = client.post(f"{NOTES}/documents", json=body).json()["numbers"]
    assert client.get(f"{NOTES}/documents/{number}").json()["text"] == "Paris"


def test_another_writer_is_named(own):
    client, _, folder = own
    with BankWriter(folder / "notes", "compact"):
        for method, path, body in (
            ("POST", "documents", {"documents": [NEW]}),
            ("DELETE", "documents/2", None),
        ):
            response = client.request(method, f"{NOTES}/{path}", json=body)
            assert response.status_code == 409
            message = response.json()["error"]["message"]
            assert "compact" in message and "process" in message and str(folder) not in message
        client.post(BANKS, json={"name": "mine"})
        assert client.delete(f"{BANKS}/mine").status_code == 200
    assert client.delete(f"{NOTES}/documents/2").status_code == 200


def test_what_others_write_is_seen_by_the_next_question(own):
    client, _, folder = own
    written = [Document(0, NEW["text"], id="other")]
    add_documents(folder / "notes", tiny_model(), tiny_tokenizer(), written, FINGERPRINT)
    assert numbers(client, id="other") == [123457]
    assert 123457 in found(client, NEW["text"])
    assert client.get(NOTES).json()["documents"] == 8


def test_writers_of_one_bank_take_turns(own):
    client, _, _ = own
    responses = []

    def add(n):
        body = {"documents": [{"id": f"n{n}", "text": f"Number {n}."}]}
        responses.append(client.post(f"{NOTES}/documents", json=body))

    threads = [threading.Thread(target=add, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [each.status_code for each in responses] == [200] * 6
    given = sorted(each.json()["numbers"][0] for each in responses)
    assert given == list(range(123457, 123463)) == numbers(client, after=123456)


def test_a_conversation_under_way_keeps_its_snapshot(tmp_path):
    answers = SlowEngine()
    with running(tmp_path, answers) as (client, _):
        ask = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=ask) as response:
            lines = response.iter_lines()
            next(lines)
            view = answers.streams[0].request.view
            client.post(f"{NOTES}/documents", json={"documents": [NEW]})
            client.delete(f"{NOTES}/documents/2")
            assert view.knows(2) and not view.knows(123457) and len(view) == 7
            assert view.documents[2].text == TEXTS[0]
            answers.go.set()
            rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert rest[-1]["choices"][0]["finish_reason"] == "stop"
        later = client.post("/v1/chat/completions", json=ask | {"stream": False})
        assert later.status_code == 200
        assert answers.streams[1].request.view.knows(123457)


def test_a_damaged_bank_is_named_not_served_silently(own):
    client, _, folder = own
    documents = [Document(0, "x", id="other")]
    add_documents(folder / "notes", tiny_model(), tiny_tokenizer(), documents, FINGERPRINT)
    for file in (folder / "notes/segments").rglob("layer-2.key"):
        file.write_bytes(file.read_bytes()[:-2] + b"zz")
    response = client.post(f"{NOTES}/search", json={"query": "x"})
    assert response.status_code == 500
    assert "was changed" in response.json()["error"]["message"]
    assert str(folder) not in response.text


@pytest.mark.parametrize(
    ("path", "form", "work"),
    [
        ("documents", {"documents": [{"text": "x"}]}, "put_documents"),
        ("documents/remove", {"numbers": [2]}, "remove_documents"),
    ],
)
def test_a_change_whose_client_leaves_is_not_made(own, monkeypatch, path, form, work):
    client, server, _ = own
    begun, told = threading.Event(), threading.Event()

    def change(*given):
        begun.set()
        with pytest.raises(ClientGone):
            wait_for(given[-1])
        told.set()

    monkeypatch.setattr(f"msa_train.serving.memory_api.{work}", change)
    body = json.dumps(form).encode()
    leave(client, f"{NOTES}/{path}", body, len(body), begun.is_set)
    assert told.wait(5)
    wait_for(lambda: server._state.changing.running == 0)
