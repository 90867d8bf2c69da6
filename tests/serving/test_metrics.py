"""What is counted, and under which names."""

from prometheus_client.parser import text_string_to_metric_families

from tests.serving.running import running

ASK = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3}


def samples(client):
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def sorted_key(*labels):
    return tuple(sorted(labels))


def test_requests_answers_banks_and_memory_are_counted(tmp_path):
    with running(tmp_path) as (client, _):
        for retrieval in ("memory", "router"):
            ask = ASK | {"memory": {"retrieval": retrieval}}
            assert client.post("/v1/chat/completions", json=ask).status_code == 200
        client.post("/v1/chat/completions", json={})
        client.get("/v1/memory/banks/notes/documents/2")
        client.get("/v1/memory/banks/notes/documents/4")
        client.get("/a/path/nobody/knows")
        client.request("BREW", "/another")
        document = {"documents": [{"text": "One more."}]}
        client.post("/v1/memory/banks/notes/documents", json=document)
        found = samples(client)
    requests = {name[1:]: value for name, value in found.items() if name[0] == "msa_requests_total"}
    chat = "/v1/chat/completions"
    assert requests[sorted_key(chat, "200", "POST")] == 2
    assert requests[sorted_key(chat, "400", "POST")] == 1
    one = "/v1/memory/banks/{bank}/documents/{number}"
    assert requests[sorted_key(one, "200", "GET")] == 1
    assert requests[sorted_key(one, "404", "GET")] == 1
    assert requests[sorted_key("404", "GET", "other")] == 1
    assert sum(value for key, value in requests.items() if key.count("other") == 2) == 1
    assert found[("msa_routing_seconds_count",)] == 3  # once from memory, twice with the vote
    assert found[("msa_first_token_seconds_count",)] == 2
    assert found[("msa_answer_seconds_count",)] == 2
    assert found[("msa_tokens_written_total",)] >= 6
    assert found[("msa_answers_running",)] == found[("msa_answers_waiting",)] == 0
    assert found[("msa_bank_documents", "notes")] == 8
    assert found[("msa_bank_chunks", "notes")] > 57
    assert found[("process_resident_memory_bytes",)] > 50e6
