"""The load test, for three seconds; and what it says of servers that fail."""

import pytest

from msa_train.bench.serve import measure
from msa_train.errors import ConfigError
from tests.serving.running import running, wait_for
from tests.serving.slow_engine import SlowEngine


def test_clients_are_answered_without_error_or_growth(tmp_path):
    """Beside silent connections too, of which there are more than the server allows."""
    with running(tmp_path, connections=16) as (client, server):
        url = str(client.base_url)
        report = measure(url=url, clients=8, seconds=3, retrieval="memory", silent=40)
        assert report["silent"] == 40 and report["errors"] == 0 and report["error_messages"] == {}
        assert report["answers"] >= 8 and 3 <= report["seconds"] < 60
        assert 0 < report["first_text_ms"]["p50"] <= report["answer_ms"]["p95"]
        assert report["rss_growth_mb"] < 50
        wait_for(lambda: server._state.answering.running == 0)


def test_errors_are_counted_by_what_they_say(tmp_path):
    answers = SlowEngine()
    answers.go.set()
    with running(tmp_path, answers, concurrent=1, waiting=0) as (client, _):
        report = measure(url=str(client.base_url), clients=4, seconds=0.5)
    assert report["errors"] > 0
    assert all(message.startswith("429") for message in report["error_messages"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "--url, or --export and --bank"),
        ({"url": "http://127.0.0.1:9", "clients": 0}, "0 clients"),
        ({"url": "http://127.0.0.1:9", "silent": -1}, "-1 silent"),
        ({"url": "http://127.0.0.1:9", "seconds": float("nan")}, "nan seconds"),
        ({"url": "http://127.0.0.1:9"}, "does not answer"),
        ({"url": "ftp://x"}, "http://HOST:PORT"),
    ],
)
def test_what_cannot_be_measured_is_named(settings, said):
    with pytest.raises(ConfigError) as caught:
        measure(**settings)
    assert said in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://h:port", "http://[", "h:80"])
def test_an_address_that_is_none_is_named(url):
    with pytest.raises(ConfigError, match="give http://HOST:PORT") as error:
        measure(url=url)
    assert url in str(error.value)
