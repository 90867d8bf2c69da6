"""The application's routes: health, the page, and errors of one form for whatever is not there."""

import pytest


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/nothing", "GET", 404),
        ("/explorer/../api.py", "GET", 404),
        ("/explorer/%2e%2e/api.py", "GET", 404),
        ("/v1/models", "DELETE", 405),
        ("/v1/memory/banks/notes/documents/x", "GET", 400),
        ("/v1/memory/banks/notes/documents?limit=0", "GET", 400),
        ("/v1/memory/banks/notes/documents?limit=100000", "GET", 400),
        ("/v1/memory/banks/notes/documents?after=x", "GET", 400),
        ("/docs", "GET", 404),
        ("/openapi.json", "GET", 404),
    ],
)
def test_errors_have_one_form(http, path, method, status):
    response = http.request(method, path)
    assert response.status_code == status
    assert response.json()["error"].keys() == {"message", "type", "code"}


def test_health_names_the_model_and_its_banks(http):
    health = {"status": "ok", "model": "tiny", "banks": ["notes"], "hybrid": None,
              "retrieval": "generate"}  # fmt: skip
    assert http.get("/healthz").json() == health


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/v1/models", "/", "/explorer/app.js"])
def test_every_get_has_its_head(http, path):
    head, got = http.head(path), http.get(path)
    assert head.status_code == got.status_code == 200 and head.content == b""
    assert int(head.headers["content-length"]) > 0 and http.head("/nothing").status_code == 404
    assert http.head("/v1/chat/completions").status_code == 405


def test_the_page_and_its_files_are_served(http):
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["cache-control"] == "no-cache"
    assert http.get("/explorer/app.js").status_code == 200
