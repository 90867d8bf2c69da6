"""Requests of the memory's endpoints, checked; and documents as JSON."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from data_pipeline.schema import Document
from msa_train.memory.bank.documents import METADATA_BYTES, StoredDocument, metadata_bytes, text_of
from msa_train.memory.bank.filters import DocumentFilter
from msa_train.serving.errors import ApiError, bad_request

_MAX_NAME = 1000  # characters of an id or a title
_MAX_WORDS = 200  # characters: every word is looked for in every text
PAGE, MAX_PAGE = 50, 500  # documents of a list
NUMBERS_END = 10**18  # of documents: as text, a number has at most 18 digits

Number = Annotated[int, Field(ge=0, lt=NUMBERS_END)]
Time = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Name = Annotated[str, Field(max_length=_MAX_NAME)]
Schema = TypeVar("Schema", bound=BaseModel)


class Strict(BaseModel):
    """Unknown fields and values of another type are refused, not guessed at."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Content(Strict):
    """Of a document."""

    title: Name = ""
    text: str
    metadata: JsonValue = None

    @field_validator("metadata")
    @classmethod
    def _is_small_json(cls, value: JsonValue) -> JsonValue:
        size = metadata_bytes(value)
        if size > METADATA_BYTES:
            raise ValueError(f"it has {size:,} bytes as JSON: give {METADATA_BYTES:,} at most")
        return value


class NewDocument(Content):
    id: Name = ""


class NewDocuments(Strict):
    documents: Annotated[list[NewDocument], Field(min_length=1)]


class NewBank(Strict):
    name: str


class Filter(Strict):
    """The documents for which all that is given holds. added_*: milliseconds since 1970, UTC."""

    ids: list[Name] | None = None
    numbers: list[Number] | None = None
    metadata: dict[str, JsonValue] | None = None
    added_after: Time | None = None
    added_before: Time | None = None

    def documents(self) -> DocumentFilter:
        return DocumentFilter.from_json(self.model_dump(exclude_none=True))


class Matching(Strict):
    """The documents that a filter lets through, and in which all these words stand."""

    filter: Filter | None = None
    words: Annotated[str, Field(max_length=_MAX_WORDS)] = ""


class Listing(Matching):
    """A stretch of them by ascending number: above `after`, without the first `skip`."""

    after: Annotated[int, Field(ge=-1, lt=NUMBERS_END)] = -1
    skip: Annotated[int, Field(ge=0, lt=NUMBERS_END)] = 0
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = PAGE


class CountedMatching(Matching):
    """count: how many there are, as the client was told."""

    count: Annotated[int, Field(ge=0)]


class Removal(Strict):
    ids: list[Name] = []
    numbers: list[Number] = []
    matching: CountedMatching | None = None


class Search(Strict):
    query: Annotated[str, Field(min_length=1)]
    limit: Annotated[int, Field(ge=1, le=1000)] = 10
    filter: Filter | None = None


def parsed(schema: type[Schema], body: bytes) -> Schema:
    """A body, checked. Raises ApiError 400 that names every wrong field (the first five)."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        problems = [_problem(each) for each in error.errors(include_url=False)[:5]]
        raise bad_request("; ".join(problems)) from None


def replacement(new: Content, old: StoredDocument) -> StoredDocument:
    """To encode in place of another, of which stays what is not given. Raises ApiError 400."""
    title = new.title if "title" in new.model_fields_set else old.title
    metadata = new.metadata if "metadata" in new.model_fields_set else old.metadata
    text = text_of(title, new.text)
    check_text(text, "text")
    return StoredDocument(0, text, old.id, title, metadata, added=_now())


def stored_documents(new: NewDocuments, most: int) -> list[StoredDocument]:
    """Documents to encode, without numbers yet. Raises ApiError 400 and 413."""
    if len(new.documents) > most:
        raise ApiError(
            413,
            "too_many_documents",
            f"{len(new.documents)} documents in one request: send {most} at most",
        )
    now = _now()
    texts = [text_of(each.title, each.text) for each in new.documents]
    for place, text in enumerate(texts):
        check_text(text, f"documents[{place}].text")
    return [
        StoredDocument(0, text, each.id, each.title, each.metadata, added=now)
        for each, text in zip(new.documents, texts, strict=True)
    ]


def document_json(document: Document) -> dict[str, Any]:
    """A document as JSON."""
    names = ["number", "id", "title", "text"]
    if isinstance(document, StoredDocument):
        names += ["metadata", "part", "added"]
    return {name: getattr(document, name) for name in names}


def check_text(value: str, field: str) -> None:
    if not value.strip():
        raise bad_request(f"{field} is blank")


def _now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _problem(error: Any) -> str:
    place = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]
    ).lstrip(".")
    given = error.get("input")
    shown_value = "" if isinstance(given, dict | list | bytes) else f" ({json.dumps(given)[:80]})"
    return f"{place or 'the body'}: {error['msg']}{shown_value}"
