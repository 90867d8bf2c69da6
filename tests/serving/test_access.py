"""API keys: who may read, who may write, who may do nothing; files that are refused; bodies."""

import hashlib
import json

import openai
import pytest

from msa_train.errors import ConfigError
from msa_train.serving.access import ApiKeys
from tests.serving.running import running

READER, WRITER = "reader-0123456789", "writer-0123456789"
ASK = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
ASK |= {"memory": {"retrieval": "memory"}}
NEW = {"documents": [{"text": "new"}]}


def write(path, *entries):
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    return path


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    hashed = hashlib.sha256(WRITER.encode()).hexdigest()
    file = write(
        folder / "keys.jsonl",
        {"key": READER, "name": "reader", "access": "read"},
        {"sha256": hashed, "name": "writer", "access": "write"},
    )
    with running(folder, keys=ApiKeys.load(file)) as (client, _):
        yield client


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


READS = [
    ("GET", "/v1/models", None),
    ("GET", "/v1/memory/banks", None),
    ("GET", "/v1/memory/banks/notes", None),
    ("GET", "/v1/memory/banks/notes/documents", None),
    ("GET", "/v1/memory/banks/notes/documents/2", None),
    ("POST", "/v1/memory/banks/notes/search", {"query": "x"}),
    ("POST", "/v1/chat/completions", ASK),
    ("GET", "/metrics", None),
]
WRITES = [
    ("POST", "/v1/memory/banks", {"name": "mine"}),
    ("POST", "/v1/memory/banks/mine/documents", {"documents": [{"id": "a", "text": "x"}]}),
    ("PUT", "/v1/memory/banks/mine/documents", {"documents": [{"id": "a", "text": "y"}]}),
    ("POST", "/v1/memory/banks/mine/documents/remove", {"ids": ["a"]}),
    ("DELETE", "/v1/memory/banks/mine/documents/0", None),
    ("DELETE", "/v1/memory/banks/mine", None),
]


@pytest.mark.parametrize(("method", "path", "body"), READS + WRITES)
def test_nothing_without_a_key(guarded, method, path, body):
    wrong = (
        {},
        bearer("x"),
        bearer("reader"),
        bearer(READER + "x"),
        {"Authorization": READER},
        {"Authorization": f"Basic {READER}"},
        {"Authorization": b"Bearer \xff\xfe"},
    )
    for headers in wrong:
        response = guarded.request(method, path, json=body, headers=headers)
        assert response.status_code == 401 and response.headers["WWW-Authenticate"] == "Bearer"
        assert response.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(("method", "path", "body"), READS)
def test_both_may_read(guarded, method, path, body):
    for key in (READER, WRITER):
        assert guarded.request(method, path, json=body, headers=bearer(key)).status_code == 200


def test_only_the_writer_may_write(guarded):
    for method, path, body in WRITES:
        refused = guarded.request(method, path, json=body, headers=bearer(READER))
        assert refused.status_code == 403 and "'reader' may only read" in refused.text
    for (method, path, body), status in zip(WRITES, (201, 200, 200, 200, 404, 200), strict=True):
        answered = guarded.request(method, path, json=body, headers=bearer(WRITER))
        assert answered.status_code == status, (path, answered.text)


def test_who_may_not_is_told_before_the_body_is_read(guarded):
    for headers, status in (({}, 401), (bearer(READER), 403)):
        headers = headers | {"Content-Type": "application/json"}
        path = "/v1/memory/banks/notes/documents"
        assert guarded.post(path, content=b"{", headers=headers).status_code == status


def test_health_and_the_page_need_no_key(guarded):
    assert guarded.get("/healthz").status_code == 200
    assert guarded.get("/").status_code in (200, 404)  # 404: where the page is not installed


def test_the_official_client_brings_its_key(guarded):
    url = f"{guarded.base_url}/v1"
    with openai.OpenAI(base_url=url, api_key=READER, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
    with (
        openai.OpenAI(base_url=url, api_key="another", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_a_yaml_list_is_read_too(tmp_path):
    (tmp_path / "keys.yaml").write_text(f"- key: {READER}\n  name: me\n  access: read\n")
    keys = ApiKeys.load(tmp_path / "keys.yaml")
    assert len(keys) == 1 and keys.check(f"bearer {READER}", "read") == "me"


GOOD = {"key": READER, "name": "x", "access": "read"}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "no keys"),
        ([GOOD | {"access": "admin"}], "access is 'admin'"),
        ([{"key": READER}], "access is None"),
        ([GOOD | {"key": "short"}], "at least 16"),
        ([GOOD | {"key": 1234567890123456}], "at least 16"),
        ([GOOD | {"key": "schlüssel-0123456789"}], "of ASCII"),
        ([GOOD | {"key": "a key of some words"}], "no space"),
        ([GOOD | {"sha256": "0" * 64}], "either key or sha256"),
        ([{"name": "x", "access": "read"}], "either key or sha256"),
        ([{"sha256": "xyz", "access": "read"}], "64 hexadecimal"),
        ([GOOD | {"acess": "read"}], "entry 1"),
        ([GOOD, GOOD], "twice"),
    ],
)
def test_files_that_are_refused(tmp_path, entries, said):
    with pytest.raises(ConfigError, match=r"keys\.jsonl") as caught:
        ApiKeys.load(write(tmp_path / "keys.jsonl", *entries))
    assert said in str(caught.value) and READER not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "- [", "just text", "key: x", "\x00"])
def test_files_that_are_none(tmp_path, text):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError, match="--api-keys"):
        ApiKeys.load(tmp_path / "keys")
    with pytest.raises(ConfigError, match="nothing"):
        ApiKeys.load(tmp_path / "nothing")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_only_what_is_declared_as_json_is_read(http, kind):
    response = http.post("/v1/chat/completions", content=b"{}", headers={"Content-Type": kind})
    assert response.status_code == 415
