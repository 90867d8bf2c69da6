"""The memory's endpoints: banks, their documents, and searching them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import JSONResponse, Response

from msa_train.serving.access import json_body, requires, while_connected
from msa_train.serving.changes import put_documents, remove_documents
from msa_train.serving.lookup import document, listed, search
from msa_train.serving.schemas import (
    NUMBERS_END,
    NewBank,
    NewDocuments,
    Removal,
    Search,
    parsed,
    stored_documents,
)
from msa_train.serving.state import ServerState

_PAGE, _MAX_PAGE = 50, 500
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
        limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = _PAGE,
        id: str | None = None,
    ) -> Response:
        return JSONResponse(await looked_up(lambda _: listed(banks[bank], after, limit, id)))

    @router.get("/banks/{bank}/documents/{number}")
    async def one_document(bank: str, number: _Number) -> Response:
        found = await looked_up(lambda _: document(banks[bank], state.model, number))
        return JSONResponse(found)

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

    async def put(bank: str, request: Request, update: bool) -> Response:
        form = parsed(NewDocuments, await json_body(request))
        documents, target = stored_documents(form, limits.batch), banks[bank]
        putting = changed(
            lambda abandoned: put_documents(
                target, state.model, documents, update, limits.timeout_s, abandoned
            )
        )
        numbers = await while_connected(request.receive, putting)
        return JSONResponse({"added": len(numbers), "numbers": numbers})

    @router.post("/{bank}/documents")
    async def add(bank: str, request: Request) -> Response:
        return await put(bank, request, update=False)

    @router.put("/{bank}/documents")
    async def update(bank: str, request: Request) -> Response:
        return await put(bank, request, update=True)

    async def take(bank: str, ids: list[str], numbers: list[int]) -> Response:
        target = banks[bank]
        gone = await changed(lambda _: remove_documents(target, ids, numbers, limits.timeout_s))
        return JSONResponse({"removed": len(gone)})

    @router.delete("/{bank}/documents/{number}")
    async def remove_one(bank: str, number: _Number) -> Response:
        return await take(bank, [], [number])

    @router.post("/{bank}/documents/remove")
    async def remove(bank: str, request: Request) -> Response:
        form = parsed(Removal, await json_body(request))
        return await take(bank, form.ids, form.numbers)

    return router
