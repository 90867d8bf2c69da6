"""Questions that a bank can be asked: about documents that are there, and few are read."""

import pytest

from msa_train.memory.bank.documents import DocumentTable
from msa_train.serving.errors import ClientGone
from msa_train.serving.examples import examples

BANKS = "/v1/memory/banks"


def asked(client, bank, **options):
    response = client.get(f"{BANKS}/{bank}/examples", params=options)
    assert response.status_code == 200, response.text
    return response.json()["examples"]


def filled(client, bank, texts):
    """Numbers of the documents of a new bank."""
    client.post(BANKS, json={"name": bank})
    added = client.post(f"{BANKS}/{bank}/documents", json={"documents": texts})
    return added.json()["numbers"]


def test_questions_are_about_documents_that_are_there(http):
    lamps = [{"text": f"The code of lamp{n} is {n}{n}, says the keeper."} for n in range(30)]
    numbers = filled(http, "lamps", lamps)
    found = asked(http, "lamps", limit=7)
    assert found == asked(http, "lamps", limit=7), "the same every time"
    assert len(found) == len({each["question"] for each in found}) == 7
    for each in found:
        assert each["question"] == f"What is the code of lamp{numbers.index(each['number'])}?"
    kept = numbers[3]
    gone = {"numbers": [number for number in numbers if number != kept]}
    http.post(f"{BANKS}/lamps/documents/remove", json=gone)
    assert asked(http, "lamps") == [{"question": "What is the code of lamp3?", "number": kept}]


def test_nothing_is_made_of_what_cannot_be_asked_about(http):
    http.post(BANKS, json={"name": "empty"})
    assert asked(http, "empty") == []
    texts = [
        "x",
        "The\x00 code of the mill is 12 today.",
        f"The code of {'w' * 300} is 12, he says.",
    ]
    filled(http, "mute", [{"text": text} for text in texts])
    assert asked(http, "mute") == []
    [number] = filled(http, "titled", [{"title": "Mills", "text": "Flour and wind."}])
    assert asked(http, "titled") == [{"question": "What is said about “Mills”?", "number": number}]
    assert http.get(f"{BANKS}/nobody/examples").status_code == 404
    assert http.get(f"{BANKS}/titled/examples?limit=51").status_code == 400


def test_few_documents_are_read_and_none_for_nobody(served, monkeypatch):
    client, server = served
    filled(client, "long", [{"text": "Rain. " * 900} for _ in range(40)])
    read, stored = [], DocumentTable.__getitem__
    monkeypatch.setattr(
        DocumentTable, "__getitem__", lambda table, row: (read.append(row), stored(table, row))[1]
    )
    assert asked(client, "long", limit=2) == []
    assert len(read) <= 12
    read.clear()

    def gone():
        raise ClientGone

    with pytest.raises(ClientGone):
        examples(server._state.banks["long"], 5, gone)
    assert len(read) <= 1
