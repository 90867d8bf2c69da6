"""Banks on disk: what was encoded is what is read, or the bank is refused."""

import contextlib
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from data_pipeline.errors import DataError
from msa_train.errors import BankError
from msa_train.memory.bank.build import build_bank
from msa_train.memory.bank.corpus import read_corpus
from msa_train.memory.bank.encode import encode_documents
from msa_train.memory.bank.manifest import MANIFEST, BankManifest
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.verify import verify_bank
from msa_train.memory.engine.engine import MemoryEngine
from msa_train.memory.engine.interleave import InterleaveLimits
from msa_train.memory.search.in_memory import encode_in_memory
from msa_train.memory.search.tiers import bank_view
from tests.memory.tiny import FINGERPRINT, tiny_documents, tiny_model, tiny_tokenizer


def build(path, documents=None, **settings):
    documents = tiny_documents() if documents is None else documents
    settings = {"fingerprint": FINGERPRINT, "dtype": "float32", "token_budget": 50} | settings
    return build_bank(path, tiny_model(), tiny_tokenizer(), documents, **settings)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    path = tmp_path_factory.mktemp("banks") / "bank"
    build(path)
    return BankSnapshot.open(path, FINGERPRINT)


def questions(count=3, seed=0):
    gen = torch.Generator().manual_seed(seed)
    config = tiny_model().config
    query = torch.randn(count * 4, config.kv_heads * config.head_dim, generator=gen)
    return query, torch.arange(0, count * 4 + 1, 4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_bank_reads_back_exactly_what_was_encoded(tmp_path, dtype):
    build(tmp_path / "bank", dtype=dtype)
    bank = BankSnapshot.open(tmp_path / "bank", FINGERPRINT)
    kind = getattr(torch, dtype)
    (encoded,) = encode_documents(
        tiny_model(), tiny_tokenizer(), tiny_documents(), 10**6, dtype=kind
    )
    for layer, states in encoded.pooled.items():
        for name in ("k", "v", "key"):
            stored = getattr(bank.segments[0].pooled[layer], name)
            assert stored.dtype == kind
            torch.testing.assert_close(stored, getattr(states, name), rtol=1e-2, atol=1e-5)
    assert torch.equal(bank.chunk_cu.diff(), encoded.chunks)
    assert bank.segments[0].documents.tokens.tolist() == encoded.tokens.tolist()


def test_search_in_a_bank_equals_search_in_memory(bank):
    view = encode_in_memory(tiny_model(), tiny_tokenizer(), tiny_documents(), token_budget=50)
    query, query_cu = questions()
    for layer in tiny_model().config.router_layers:
        ours, k, v = bank_view(bank, tiny_model().config.router).memory.search(
            layer, query, query_cu
        )
        theirs, other_k, other_v = view.memory.search(layer, query, query_cu)
        assert torch.equal(ours.documents, theirs.documents)
        assert torch.equal(ours.chunk_scores, theirs.chunk_scores)
        assert torch.equal(k, other_k) and torch.equal(v, other_v)


def test_documents_are_found_by_number(bank):
    for document in tiny_documents():
        assert same(bank[document.number], document)
        assert bank.numbers_of(document.id) == [document.number]
    assert bank.numbers_of("d4") == []
    view = bank_view(bank, tiny_model().config.router)
    assert [n for n in range(50) if view.knows(n)] == [2, 3, 17, 40, 41]
    for number in (0, 18, 10**9):
        with pytest.raises(KeyError):
            bank[number]


def same(stored, document):
    fields = ("number", "id", "title", "text")
    return all(getattr(stored, field) == getattr(document, field) for field in fields)


def test_info_counts(bank):
    info = bank.info()
    assert info["documents"] == 7
    assert info["tokens"] == int(bank.segments[0].documents.tokens.sum())
    assert info["chunks"] == int(bank.chunk_cu[-1])
    assert info["fingerprint"] == FINGERPRINT
    assert json.loads(json.dumps(info)) == info


def test_an_existing_target_is_left_alone(tmp_path):
    (tmp_path / "bank").mkdir()
    with pytest.raises(BankError, match="exists"):
        build(tmp_path / "bank")
    assert not any((tmp_path / "bank").iterdir())


def test_other_weights_are_refused_by_name(bank):
    with pytest.raises(BankError, match=r"its model fingerprint is aaaa.*model's is cccc"):
        BankSnapshot.open(bank.path, FINGERPRINT | {"model": "c" * 64})
    with pytest.raises(BankError, match="config fingerprint"):
        BankSnapshot.open(bank.path, FINGERPRINT | {"config": "d" * 64})


def test_a_failing_corpus_leaves_nothing(tmp_path):
    def documents():
        yield from tiny_documents()[:4]
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        build(tmp_path / "bank", documents())
    assert not list(tmp_path.iterdir())


def test_a_killed_build_leaves_no_bank_but_says_what_it_left(tmp_path, capfd):
    code = """
        import os, signal
        from tests.memory.bank.test_snapshot import build, tiny_documents
        def documents():
            yield from tiny_documents()[:5]
            os.kill(os.getpid(), signal.SIGKILL)
        build({path!r}, documents())
    """
    code = textwrap.dedent(code).format(path=str(tmp_path / "bank"))
    done = subprocess.run([sys.executable, "-c", code], cwd=os.getcwd(), capture_output=True)
    assert done.returncode == -signal.SIGKILL
    left = tmp_path / ".bank.building"
    assert left.is_dir()
    with pytest.raises(BankError, match=r"its build is not finished .*\.bank\.building"):
        BankSnapshot.open(tmp_path / "bank")
    build(tmp_path / "bank")
    err = capfd.readouterr().err
    assert "process" in err and "did not finish" in err
    assert len(BankSnapshot.open(tmp_path / "bank", FINGERPRINT)) == 7
    assert not left.exists()


def test_an_empty_bank_is_a_bank(tmp_path):
    build(tmp_path / "bank", [])
    view = bank_view(BankSnapshot.open(tmp_path / "bank", FINGERPRINT), tiny_model().config.router)
    assert (len(view), view.memory.size, view.knows(0)) == (0, 0, False)
    (answer,) = MemoryEngine(tiny_model(), tiny_tokenizer(), view).ask(
        ["?"], "router", InterleaveLimits(answer_tokens=2)
    )
    assert answer.evidence == () and answer.rounds[0].chosen.voted == []


def copy_of(bank, tmp_path):
    return shutil.copytree(bank.path, tmp_path / "copy")


FILES = ["documents.arrow", "ids.u64", "layer-2.k", "layer-3.v", "layer-3.key", "layer-2.crc"]


def file_of(bank, tmp_path, name):
    (segment,) = bank.segments
    return copy_of(bank, tmp_path) / "segments" / segment.entry.name / name


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_by_name(bank, tmp_path, name):
    file = file_of(bank, tmp_path, name)
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(BankError, match=f"{name} has .* bytes"):
        BankSnapshot.open(tmp_path / "copy", FINGERPRINT)
    file.unlink()
    with pytest.raises(BankError, match=f"{name} is missing"):
        BankSnapshot.open(tmp_path / "copy", FINGERPRINT)


def ask(path):
    """All states and texts of a bank as an engine would read them."""
    bank = BankSnapshot.open(path, FINGERPRINT)
    memory = bank_view(bank, tiny_model().config.router).memory
    for layer in tiny_model().config.router_layers:
        memory.search(layer, *questions(count=40))
    return [(document.text, bank.numbers_of(document.id)) for document in bank]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_by_verify_and_never_used(bank, tmp_path, name):
    file = file_of(bank, tmp_path, name)
    whole, texts = file.read_bytes(), ask(bank.path)
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        assert any(name in problem for problem in verify_bank(tmp_path / "copy")["problems"])
        with contextlib.suppress(BankError):  # else: padding, or states that nothing read
            assert ask(tmp_path / "copy") == texts
    file.write_bytes(whole)
    assert not verify_bank(tmp_path / "copy")["problems"]


@pytest.mark.parametrize(
    ("manifest", "message"),
    [("{", "not the manifest"), ("{}", "not the manifest"), (None, "has no manifest.json")],
)
def test_a_broken_manifest_is_refused(bank, tmp_path, manifest, message):
    file = copy_of(bank, tmp_path) / MANIFEST
    file.unlink() if manifest is None else file.write_text(manifest)
    with pytest.raises(BankError, match=message):
        BankSnapshot.open(tmp_path / "copy")


def test_every_flipped_bit_of_a_manifest_is_refused(bank, tmp_path):
    file = copy_of(bank, tmp_path) / MANIFEST
    whole = file.read_bytes()
    for place in range(len(whole) - 1):  # the last byte is a newline after the digest
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(BankError, match=r"damaged|bank format"):
            BankManifest.load(tmp_path / "copy")


def test_a_newer_format_is_refused(bank, tmp_path):
    file = copy_of(bank, tmp_path) / MANIFEST
    file.write_text(file.read_text().replace('"version": 2', '"version": 3'))
    with pytest.raises(BankError, match="format 3; this version reads 2"):
        BankSnapshot.open(tmp_path / "copy")


def test_states_that_overflow_are_refused(tmp_path):
    weights = {name: w.clone() for name, w in tiny_model().state_dict().items()}
    weights["model.layers.2.self_attn.v_proj.weight"] *= 1e6
    model = type(tiny_model())(tiny_model().config)
    model.load_state_dict(weights)
    with pytest.raises(BankError, match="v of layer 2 is not finite as float16"):
        build_bank(tmp_path / "bank", model, tiny_tokenizer(), tiny_documents(), FINGERPRINT)
    assert not list(tmp_path.iterdir())


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(BankError, match="dtype is 'int8'"):
        build(tmp_path / "bank", dtype="int8")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_corpus_is_read_line_by_line(tmp_path, suffix):
    lines = '{"id": "a", "title": "T", "text": "one\\u2028two"}\n\n'
    lines += '{"text": "three", "metadata": {"n": 1}}\n'
    file = tmp_path / f"corpus{suffix}"
    file.write_bytes(gzip.compress(lines.encode()) if suffix.endswith("gz") else lines.encode())
    found = list(read_corpus(file, first_number=5))
    expected = [(5, "one\u2028two", "a", "T", None), (6, "three", "", "", {"n": 1})]
    assert [(d.number, d.text, d.id, d.title, d.metadata) for d in found] == expected


@pytest.mark.parametrize(
    "line",
    [
        b"{", b'"text"', b'{"title": "t"}', b'{"text": 3}', b"\xff", b'{"text": "\\ud800"}',
        b'{"text": "t", "added": -1}', b'{"text": "t", "part": true}',
    ],
)  # fmt: skip
def test_a_broken_line_is_named(tmp_path, line):
    file = tmp_path / "corpus.jsonl"
    file.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=r"corpus.jsonl, line 2"):
        list(read_corpus(file))


def test_a_missing_or_cut_corpus_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        list(read_corpus(tmp_path / "corpus.jsonl"))
    whole = gzip.compress(os.urandom(2000).hex().join(['{"text": "', '"}']).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(DataError, match="no complete gzip"):
        list(read_corpus(tmp_path / "cut.jsonl.gz"))
