"""Banks by name: their order, what is refused, and errors that name a bank, not its folder."""

from pathlib import Path

import pytest

from msa_train.errors import BankError, ConfigError
from msa_train.serving.banks import Banks, ServedBank, check_name
from msa_train.serving.errors import ApiError
from tests.memory.building import flip
from tests.memory.tiny import FINGERPRINT
from tests.serving.running import MODEL, running, tiny_bank


class Closed:
    """A LiveBank that only counts how often it was closed."""

    def __init__(self):
        self.closed = 0

    def close(self):
        self.closed += 1


def banks(folder=None):
    return Banks(lambda path: Closed(), folder)


def test_the_newest_named_bank_is_the_default():
    ours = banks()
    ours.open("a", Path("x"))
    ours.open("b", Path("y"))
    assert [bank.name for bank in ours] == ["b", "a"]
    assert ours[None].name == "b" and ours["a"].path == Path("x")
    with pytest.raises(ConfigError, match="--bank a=z"):
        ours.open("a", Path("z"))


def test_what_is_not_there_is_named():
    with pytest.raises(ApiError, match="there is no bank yet"):
        banks()[None]
    with pytest.raises(ApiError, match="no bank 'other'") as caught:
        banks()["other"]
    assert caught.value.status == 404


def test_banks_are_made_and_dropped_in_the_folder_alone(tmp_path):
    without = banks()
    with pytest.raises(ApiError, match="--banks-dir") as caught:
        without.create("mine", MODEL)
    assert caught.value.status == 403
    without.open("given", tmp_path / "given")
    with pytest.raises(ApiError, match="given at the start"):
        without.drop("given", 1.0)

    ours = banks(tmp_path / "banks")
    made = ours.create("mine", MODEL)
    with pytest.raises(ApiError, match="already"):
        ours.create("mine", MODEL)
    ours.drop("mine", 1.0)
    assert made.dropped and made._live.closed == 1 and list((tmp_path / "banks").iterdir()) == []
    with pytest.raises(ApiError, match="was dropped"):
        made.view()


def test_banks_of_the_folder_are_opened_and_dropped_ones_deleted(tmp_path):
    tiny_bank(tmp_path / "kept")
    (tmp_path / ".gone.dropped-0123abcd").mkdir()
    (tmp_path / "not a bank").mkdir()
    assert [bank.name for bank in banks(tmp_path)] == ["kept"]
    assert not (tmp_path / ".gone.dropped-0123abcd").exists()


def test_a_bank_that_cannot_be_opened_is_kept_with_the_reason():
    def opened(path):
        if path == Path("bad"):
            raise BankError("bad/layer-2.key was changed")
        return Closed()

    ours = Banks(opened)
    ours.open("good", Path("good"))
    ours.open("worse", Path("bad"))
    told = "bank 'worse'/layer-2.key was changed"
    assert [bank.name for bank in ours] == ["worse", "good"]
    assert [bank.name for bank in ours.opened] == ["good"]
    assert ours["worse"].summary() == {"name": "worse", "droppable": False, "problem": told}
    for use in (lambda bank: bank.view(), lambda bank: bank.snapshot, lambda bank: bank.info()):
        with pytest.raises(ApiError, match=f"^{told}; mend it") as caught:
            use(ours["worse"])
        assert (caught.value.status, caught.value.code) == (503, "bank_unavailable")
    ours.close()
    assert ours["good"]._live.closed == 1


def test_bad_banks_do_not_keep_a_server_from_serving_the_others(tmp_path):
    banks = tmp_path / "banks"
    banks.mkdir()
    for name in ("damaged", "lost"):
        tiny_bank(banks / name)
    tiny_bank(banks / "foreign", FINGERPRINT | {"model": "c" * 64})
    flip(next((banks / "damaged").rglob("layer-2.key")))
    (banks / "lost" / "manifest.json").unlink()
    bad = {"damaged": "was changed", "foreign": "another model", "lost": "no memory bank"}
    with running(tmp_path) as (client, _):
        health = client.get("/healthz")
        assert health.status_code == 200 and health.json()["status"] == "degraded"
        assert (health.json()["banks"], health.json()["unavailable"]) == (["notes"], [*bad])
        listed = client.get("/v1/memory/banks").json()["banks"]
        assert {each["name"] for each in listed if "problem" in each} == {*bad}
        ask = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        for name, said in bad.items():
            one, document = f"/v1/memory/banks/{name}", {"documents": [{"id": "d2", "text": "x"}]}
            for method, path, body in (
                ("GET", one, None),
                ("GET", f"{one}/documents", None),
                ("GET", f"{one}/documents/2", None),
                ("POST", f"{one}/search", {"query": "x"}),
                ("POST", f"{one}/documents", document),
                ("PUT", f"{one}/documents", document),
                ("DELETE", f"{one}/documents/2", None),
                ("POST", "/v1/chat/completions", ask | {"memory": {"bank": name}}),
            ):
                response = client.request(method, path, json=body)
                assert response.status_code == 503, (method, path, response.text)
                error = response.json()["error"]
                assert error["code"] == "bank_unavailable" and said in error["message"]
                assert str(tmp_path) not in response.text
        assert client.post("/v1/chat/completions", json=ask).status_code == 200
        assert client.get("/metrics").status_code == 200
        assert client.delete("/v1/memory/banks/damaged").status_code == 200
        assert client.get("/healthz").json()["unavailable"] == ["foreign", "lost"]


def test_errors_name_the_bank(tmp_path):
    bank = ServedBank("notes", tmp_path, Closed(), droppable=False)
    changed = pytest.raises(ApiError, match=r"^bank 'notes'/layer-2\.key was changed$")
    with changed as caught, bank.named_errors():
        raise BankError(f"{tmp_path}/layer-2.key was changed")
    assert caught.value.code == "bank_error"
    with pytest.raises(KeyError), bank.named_errors():
        raise KeyError("another's")


def test_one_writer_at_a_time(tmp_path):
    bank = ServedBank("notes", tmp_path, Closed(), droppable=False)
    with bank.writing(1.0), pytest.raises(ApiError, match="being changed"), bank.writing(0.01):
        pass
    with bank.writing(0.01):
        pass


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "x" * 65, "é"])
def test_impossible_names_are_refused(name):
    with pytest.raises(ConfigError, match="letters, digits"):
        check_name(name)
