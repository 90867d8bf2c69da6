"""A corpus: read line by line, what is broken in it named, long documents split."""

import gzip
import os

import pytest

from data_pipeline.errors import DataError
from data_pipeline.sources.dataset_config import DatasetConfig
from msa_train import cli
from msa_train.errors import ConfigError
from msa_train.memory.bank.corpus import CorpusFile, Splitting, pydocs
from msa_train.memory.bank.documents import StoredDocument
from tests.memory.tiny import tiny_tokenizer


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_corpus_is_read_line_by_line(tmp_path, suffix):
    lines = '{"id": "a", "title": "T", "text": "one\\u2028two"}\n\n'
    lines += '{"text": "three", "metadata": {"n": 1}}\n'
    file = tmp_path / f"corpus{suffix}"
    file.write_bytes(gzip.compress(lines.encode()) if suffix.endswith("gz") else lines.encode())
    found = list(CorpusFile(file).documents(5))
    expected = [(5, "one\u2028two", "a", "T", None), (6, "three", "", "", {"n": 1})]
    assert [(d.number, d.text, d.id, d.title, d.metadata) for d in found] == expected


@pytest.mark.parametrize(
    "line",
    [
        b"{", b'"text"', b'{"title": "t"}', b'{"text": 3}', b"\xff", b'{"text": "\\ud800"}',
        b'{"text": "t", "added": -1}', b'{"text": "t", "part": true}', b'{"text": ""}',
        b'{"text": " \\n", "title": ""}', b'{"text": "t", "id": {"a": 1}}',
        b'{"text": "t", "id": false}',
        b'{"text": "t", "metadata": "%s"}' % (b"m" * 65_535),
        b'{"text": "t", "title": ["t"]}', b'{"text": null, "title": "t"}',
    ],
)  # fmt: skip
def test_a_broken_line_is_named(tmp_path, line):
    file = tmp_path / "corpus.jsonl"
    file.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=r"corpus.jsonl, line 2"):
        list(CorpusFile(file).documents())


def test_a_title_alone_is_a_text_and_a_number_an_id(tmp_path):
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"text": " ", "title": "Paris", "id": 7}\n{"text": "t", "id": null}\n')
    found = [(d.number, d.id, d.title, d.text) for d in CorpusFile(file).documents()]
    assert found == [(0, "7", "Paris", "Paris"), (1, "", "", "t")]


def test_a_corpus_without_documents_is_refused(tmp_path):
    file = tmp_path / "corpus.jsonl"
    for empty in ("", "\n\n"):
        file.write_text(empty)
        with pytest.raises(DataError, match=r"corpus\.jsonl has no documents"):
            list(CorpusFile(file).documents(5))


def test_a_missing_or_cut_corpus_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        list(CorpusFile(tmp_path / "corpus.jsonl").documents())
    whole = gzip.compress(os.urandom(2000).hex().join(['{"text": "', '"}']).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(DataError, match="no complete gzip"):
        list(CorpusFile(tmp_path / "cut.jsonl.gz").documents())


def test_how_much_of_a_file_is_read_is_known(tmp_path):
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"text": "one"}\n' * 4)
    corpus = CorpusFile(file)
    documents = corpus.documents()
    assert corpus.share_read() == 0
    next(documents)
    assert 0 < corpus.share_read() <= 1
    assert len(list(documents)) == 3 and corpus.share_read() == 1
    assert CorpusFile("-").share_read() is None


def test_long_documents_become_parts_under_one_id():
    given = [
        StoredDocument(5, "A sentence of some words. " * 40, "long", metadata={"n": 1}),
        StoredDocument(6, "Short.", "short"),
    ]
    splitting = Splitting(tiny_tokenizer(), 120)
    *parts, last = splitting(given)
    assert [(d.number, d.id, d.part) for d in parts] == [
        (number, "long", number + 1) for number in range(len(parts))
    ]
    assert (last.number, last.id, last.part) == (len(parts), "short", 0)
    assert " ".join(d.text for d in parts).split() == given[0].text.split()
    assert (splitting.split, splitting.parts, splitting.made) == (1, len(parts), len(parts) + 1)
    assert splitting.expected(lambda: 0.5) == 2 * splitting.made
    assert splitting.expected(lambda: None) is None
    with pytest.raises(DataError, match="part 1 of document 'long' has more than 60 tokens"):
        list(Splitting(tiny_tokenizer(), 60)(parts))
    with pytest.raises(ConfigError, match="--document-tokens is 10"):
        Splitting(tiny_tokenizer(), 10)


def test_the_documentation_of_python_is_a_corpus():
    documents, share_read = pydocs(tiny_tokenizer())
    first = next(documents)
    assert first.number == 0 and first.id == first.title and first.text
    assert 0 < share_read() < 1


def test_training_a_bank_and_a_server_split_alike_unless_asked():
    asked = cli.build_parser().parse_args(["memory", "build", "bank", "export", "pydocs"])
    trained = DatasetConfig(path="folder").document_tokens
    assert trained == asked.document_tokens == Splitting(tiny_tokenizer()).limit
