"""Documents of a segment: what was given is read back, or named as damaged."""

from dataclasses import replace

import numpy as np
import pytest

from msa_train.errors import BankError
from msa_train.memory.bank.build import add_documents
from msa_train.memory.bank.documents import (
    DocumentTable,
    DocumentWriter,
    StoredDocument,
    counts_crc,
    metadata_bytes,
)
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.verify import verify_bank
from tests.memory.building import document
from tests.memory.tiny import FINGERPRINT, tiny_model, tiny_tokenizer


def test_everything_of_a_document_is_kept(bank):
    (added,) = [d for d in BankSnapshot.open(bank) if d.number == 12]
    assert added == document(12)
    assert added.metadata == {"n": 12} and added.added == 7


def test_half_surrogate_pairs_are_refused_by_document(bank):
    with pytest.raises(BankError, match=r"document 14 \('bad'\) has half a surrogate pair"):
        add_documents(
            bank,
            tiny_model(),
            tiny_tokenizer(),
            [replace(document(0), id="bad", metadata={"k": "\ud800"})],
            FINGERPRINT,
        )
    assert not verify_bank(bank)["orphans"]


def table(file, documents):
    """The table of a new file, and the checksum that opens it."""
    writer = DocumentWriter(file)
    for place, each in enumerate(documents):
        writer.append(each, 10 + place, 1 + place)
    writer.close()
    rows = np.arange(len(documents))
    numbers = np.array([each.number for each in documents])
    crc = counts_crc({"number": numbers, "tokens": 10 + rows, "chunks": 1 + rows})
    return DocumentTable(file, crc), crc


def test_documents_are_the_same_whenever_they_were_added(tmp_path):
    given = [document(3), document(8)]
    found, _ = table(tmp_path / "documents.arrow", given)
    assert [found[row] for row in range(2)] == given and not found.damaged()
    assert found.tokens.tolist() == [10, 11] and found.chunks.tolist() == [1, 2]
    assert found.holds([replace(each, added=99) for each in given])
    assert not found.holds(given[:1]) and not found.holds([given[0], replace(given[1], title="t")])


def test_a_changed_text_is_named_and_other_documents_are_read(tmp_path):
    file = tmp_path / "documents.arrow"
    _, crc = table(file, [document(3, "aaaa"), document(8, "bbbb")])
    file.write_bytes(file.read_bytes().replace(b"bbbb", b"bbcb"))
    found = DocumentTable(file, crc)
    assert found[0].text == "aaaa"
    with pytest.raises(BankError, match=r"document 8 in .* is damaged \(its checksum differs\)"):
        found[1]
    assert len(found.damaged()) == 1
    with pytest.raises(BankError, match="numbers or lengths changed"):
        DocumentTable(file, crc ^ 1)


def test_metadata_of_a_split_document_is_stored_once(tmp_path):
    own, other = {"k": "m" * 500}, {"k": 1}
    given = [
        StoredDocument(number, f"Text {number}.", id, "", metadata, part)
        for number, (id, metadata, part) in enumerate([
            ("a", own, 3), ("b", own, 1), ("b", own, 2), ("b", other, 3), ("b", None, 4),
            ("b", own, 5), ("", own, 1), ("", own, 2), ("", own, 1), ("", own, 2),
            ("c", own, 0), ("d", own, 2),
        ])
    ]  # fmt: skip
    found, crc = table(tmp_path / "documents.arrow", given)
    assert [found[row] for row in range(12)] == given and found.holds(given) and not found.damaged()
    assert found.metadata_rows.tolist() == [0, 1, 1, 3, 4, 1, 6, 6, 8, 8, 10, 11]
    data = (tmp_path / "documents.arrow").read_bytes()
    assert data.count(b"m" * 500) == 6
    first = data.index(b"m" * 500, data.index(b"m" * 500) + 500)
    (tmp_path / "documents.arrow").write_bytes(data[:first] + b"x" + data[first + 1 :])
    with pytest.raises(BankError, match=r"document 1 in .* is damaged"):
        DocumentTable(tmp_path / "documents.arrow", crc)[2]


def test_metadata_is_measured_as_json():
    assert metadata_bytes(None) == 4 and metadata_bytes({"a": "é東"}) == 14
    for wrong in (float("nan"), [float("inf")]):
        with pytest.raises(ValueError, match="JSON"):
            metadata_bytes(wrong)


def test_a_line_has_what_a_corpus_reads():
    full = StoredDocument(4, "text", "id", "title", {"n": 1}, 2, 7)
    assert full.to_line() == {
        "id": "id", "title": "title", "text": "text", "number": 4, "part": 2, "added": 7,
        "metadata": {"n": 1},
    }  # fmt: skip
    assert StoredDocument(4, "text").to_line() == {
        "id": "",
        "title": "",
        "text": "text",
        "number": 4,
    }
