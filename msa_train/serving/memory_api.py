"""The memory's endpoints: banks, their documents, and searching them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import JSONResponse, Response

from msa_train.serving.access import json_body, requires, while_connected
from msa_train.serving.changes import put_documents, remove_documents, replace_document
from msa_train.serving.examples import examples
from msa_train.serving.lookup import document, listed, search, whole_document
from msa_train.serving.schemas import (
    MAX_PAGE,
    NUMBERS_END,
    PAGE,
    Content,
    Filter,
    Listing,
    NewBank,
    NewDocuments,
    Removal,
    Search,
    parsed,
    stored_documents,
)
from msa_train.serving.state import ServerState
from msa_train.serving.threads import GoingOn

_EXAMPLES, _MAX_EXAMPLES = 6, 50
_Number = Annotated[int, Path(ge=0, lt=NUMBERS_END)]


def routes(state: ServerState) -> list[APIRouter]:
    return [_reading(state), _changing(state)]


def _reading(state: ServerState) -> APIRouter:
    router = APIRouter(prefix="/v1/memory", dependencies=[requires(state.keys, "read")])
    banks, looked_up = state.banks, state.looking.in_thread

    @router.get("/banks")
    async def all_banks() -> dict[str, Any]:
        found = await looked_up(lambda _: [bank.summary() for bank in banks])
        return {"banks": found, "retrieval": state.retrieval}

    @router.get("/banks/{bank}")
    async def one_bank(bank: str) -> dict[str, Any]:
        found = banks[bank]
        return await looked_up(lambda _: found.info())

    @router.get("/banks/{bank}/documents")
    async def documents(
        bank: str,
        after: Annotated[int, Query(ge=-1, lt=NUMBERS_END)] = -1,
        skip: Annotated[int, Query(ge=0, lt=NUMBERS_END)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE,
        id: str | None = None,
    ) -> Response:
        # Checked already; an id may be asked for that is longer than a request may give one.
        only = None if id is None else Filter.model_construct(ids=[id])
        asked = Listing.model_construct(after=after, skip=skip, limit=limit, filter=only)
        return JSONResponse(await looked_up(lambda going_on: listed(banks[bank], asked, going_on)))

    @router.post("/banks/{bank}/documents/find")
    async def find_documents(bank: str, request: Request) -> Response:
        asked, searched = parsed(Listing, await json_body(request)), banks[bank]
        scanning = state.scanning.in_thread(lambda going_on: listed(searched, asked, going_on))
        return JSONResponse(await while_connected(request.receive, scanning))

    @router.get("/banks/{bank}/documents/{number}")
    async def one_document(bank: str, number: _Number) -> Response:
        found = await looked_up(lambda _: document(banks[bank], state.model, number))
        return JSONResponse(found)

    @router.get("/banks/{bank}/documents/{number}/whole")
    async def whole(bank: str, number: _Number) -> Response:
        found = await looked_up(lambda going_on: whole_document(banks[bank], number, going_on))
        return JSONResponse(found)

    @router.get("/banks/{bank}/examples")
    async def example_questions(
        bank: str,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=_MAX_EXAMPLES)] = _EXAMPLES,
    ) -> Response:
        found = banks[bank]
        making = looked_up(lambda going_on: examples(found, limit, going_on))
        return JSONResponse({"examples": await while_connected(request.receive, making)})

    @router.post("/banks/{bank}/search")
    async def find(bank: str, request: Request) -> Response:
        asked, found = parsed(Search, await json_body(request)), banks[bank]
        state.check_length(asked.query)
        most = state.limits.context_tokens
        searching = state.answering.in_thread(lambda _: search(found, state.model, asked, most))
        documents = await while_connected(request.receive, searching)
        return JSONResponse({"documents": documents})

    return router


def _changing(state: ServerState) -> APIRouter:
    router = APIRouter(prefix="/v1/memory/banks", dependencies=[requires(state.keys, "write")])
    banks, limits, changed = state.banks, state.limits, state.changing.in_thread

    @router.post("")
    async def create(request: Request) -> Response:
        name = parsed(NewBank, await json_body(request)).name
        bank = await changed(lambda _: banks.create(name, state.model))
        return JSONResponse(bank.info(), 201)

    @router.delete("/{bank}")
    async def drop(bank: str) -> Response:
        await changed(lambda _: banks.drop(bank, limits.timeout_s))
        return JSONResponse({"dropped": bank})

    async def numbers_of(change: Callable[[GoingOn], list[int]], request: Request) -> list[int]:
        """What a change returns, which is not made where its client goes away."""
        return await while_connected(request.receive, changed(change))

    async def put(change: Callable[[GoingOn], list[int]], request: Request) -> Response:
        numbers = await numbers_of(change, request)
        return JSONResponse({"added": len(numbers), "numbers": numbers})

    async def put_all(bank: str, request: Request, update: bool) -> Response:
        form = parsed(NewDocuments, await json_body(request))
        given = banks[bank], state.model, stored_documents(form, limits.batch), update
        return await put(
            lambda going_on: put_documents(*given, limits.timeout_s, going_on), request
        )

    @router.post("/{bank}/documents")
    async def add(bank: str, request: Request) -> Response:
        return await put_all(bank, request, update=False)

    @router.put("/{bank}/documents")
    async def update(bank: str, request: Request) -> Response:
        return await put_all(bank, request, update=True)

    @router.put("/{bank}/documents/{number}")
    async def replace(bank: str, number: _Number, request: Request) -> Response:
        given = banks[bank], state.model, number, parsed(Content, await json_body(request))
        return await put(
            lambda going_on: replace_document(*given, limits.timeout_s, going_on), request
        )

    async def take(bank: str, wanted: Removal, request: Request) -> Response:
        given = banks[bank], wanted, limits.timeout_s
        gone = await numbers_of(lambda going_on: remove_documents(*given, going_on), request)
        return JSONResponse({"removed": len(gone)})

    @router.delete("/{bank}/documents/{number}")
    async def remove_one(bank: str, number: _Number, request: Request) -> Response:
        return await take(bank, Removal(numbers=[number]), request)

    @router.post("/{bank}/documents/remove")
    async def remove(bank: str, request: Request) -> Response:
        return await take(bank, parsed(Removal, await json_body(request)), request)

    return router
