"""Bodies of the memory's endpoints: what is wrong is named, and documents are shown whole."""

import pytest

from data_pipeline.schema import Document
from msa_train.memory.bank.documents import StoredDocument
from msa_train.serving.errors import ApiError
from msa_train.serving.schemas import (
    Filter,
    NewDocuments,
    check_text,
    document_json,
    parsed,
    stored_documents,
)


def test_every_wrong_field_is_named():
    body = b'{"documents": [{"text": 1, "colour": "red"}, {"id": "x"}]}'
    with pytest.raises(ApiError) as caught:
        parsed(NewDocuments, body)
    message = caught.value.message
    assert "documents[0].text: Input should be a valid string (1)" in message
    assert "documents[0].colour" in message and "documents[1].text: Field required" in message
    with pytest.raises(ApiError, match="the body: Invalid JSON"):
        parsed(NewDocuments, b"{")


def test_documents_to_store_are_bounded_and_have_text():
    new = parsed(NewDocuments, b'{"documents": [{"text": "a", "id": "i"}, {"text": "b"}]}')
    first, second = stored_documents(new, 2)
    assert (first.text, first.id, second.id) == ("a", "i", "") and first.added == second.added
    with pytest.raises(ApiError, match="send 1 at most") as caught:
        stored_documents(new, 1)
    assert caught.value.status == 413
    blank = parsed(NewDocuments, b'{"documents": [{"text": "a"}, {"text": " "}]}')
    with pytest.raises(ApiError, match=r"documents\[1\]\.text is blank"):
        stored_documents(blank, 2)


def test_a_document_is_shown_with_all_that_is_stored_of_it():
    stored = StoredDocument(3, "text", "id", "title", [1], part=2, added=5)
    assert document_json(stored) == {
        "number": 3, "id": "id", "title": "title", "text": "text", "metadata": [1], "part": 2,
        "added": 5,
    }  # fmt: skip
    assert document_json(Document(3, "text")).keys() == {"number", "id", "title", "text"}


def test_a_filter_has_what_was_given_alone():
    found = parsed(Filter, b'{"numbers": [3], "added_after": 0}').documents()
    assert found == parsed(Filter, b'{"added_after": 0, "numbers": [3], "ids": null}').documents()


def test_blank_text_is_refused_by_its_field():
    check_text(" x", "query")
    with pytest.raises(ApiError, match="query is blank"):
        check_text(" \n", "query")
