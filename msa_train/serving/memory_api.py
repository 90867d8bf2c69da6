"""The memory's endpoints: banks, their documents, and searching them."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import JSONResponse, Response

from msa_train.serving.access import allowed, json_body
from msa_train.serving.changes import put_documents, remove_documents
from msa_train.serving.lookup import document, listed, search
from msa_train.serving.schemas import (
    MOST_NUMBERS,
    NewBank,
    NewDocuments,
    Removal,
    Search,
    parsed,
    stored_documents,
)
from msa_train.serving.service import Service
from msa_train.serving.threads import in_thread

_PAGE, _LONGEST_PAGE = 50, 500
T = TypeVar("T")
_Number = Annotated[int, Path(ge=0, lt=MOST_NUMBERS)]


def routes(service: Service) -> list[APIRouter]:
    return [_reading(service), _banks(service), _changing(service)]


def _reading(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1/memory", dependencies=[allowed(service, "read")])
    banks = service.banks

    async def looked_up(work: Callable[[Event], T]) -> T:
        async with service.looking.admitted():
            return await in_thread(work)

    @router.get("/banks")
    async def all_banks() -> dict[str, Any]:
        return {"banks": await looked_up(lambda _: [bank.info() for bank in banks])}

    @router.get("/banks/{bank}")
    async def one_bank(bank: str) -> dict[str, Any]:
        found = banks[bank]
        return await looked_up(lambda _: found.info())

    @router.get("/banks/{bank}/documents")
    async def documents(
        bank: str,
        after: Annotated[int, Query(ge=-1, lt=MOST_NUMBERS)] = -1,
        limit: Annotated[int, Query(ge=1, le=_LONGEST_PAGE)] = _PAGE,
        id: str | None = None,
    ) -> Response:
        return JSONResponse(await looked_up(lambda _: listed(banks[bank], after, limit, id)))

    @router.get("/banks/{bank}/documents/{number}")
    async def one_document(bank: str, number: _Number) -> Response:
        found = await looked_up(lambda _: document(banks[bank], service.model, number))
        return JSONResponse(found)

    @router.post("/banks/{bank}/search")
    async def find(bank: str, request: Request) -> Response:
        asked, found = parsed(Search, await json_body(request)), banks[bank]
        service.check_length(asked.query)
        most = service.limits.context_tokens
        async with service.answering.admitted():
            documents = await in_thread(lambda _: search(found, service.model, asked, most))
        return JSONResponse({"documents": documents})

    return router


def _banks(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1/memory", dependencies=[allowed(service, "write")])
    banks, limits = service.banks, service.limits

    @router.post("/banks")
    async def create(request: Request) -> Response:
        name = parsed(NewBank, await json_body(request)).name
        async with service.changing.admitted():
            bank = await in_thread(lambda _: banks.create(name, service.model))
        return JSONResponse(bank.info(), 201)

    @router.delete("/banks/{bank}")
    async def drop(bank: str) -> Response:
        async with service.changing.admitted():
            await in_thread(lambda _: banks.drop(bank, limits.timeout_s))
        return JSONResponse({"dropped": bank})

    return router


def _changing(service: Service) -> APIRouter:
    router = APIRouter(
        prefix="/v1/memory/banks/{bank}/documents", dependencies=[allowed(service, "write")]
    )
    banks, limits = service.banks, service.limits

    async def put(bank: str, request: Request, update: bool) -> Response:
        form = parsed(NewDocuments, await json_body(request))
        documents, target = stored_documents(form, limits.batch), banks[bank]
        async with service.changing.admitted():
            numbers = await in_thread(
                lambda abandoned: put_documents(
                    target, service.model, documents, update, limits.timeout_s, abandoned
                )
            )
        return JSONResponse({"added": len(numbers), "numbers": numbers})

    @router.post("")
    async def add(bank: str, request: Request) -> Response:
        return await put(bank, request, update=False)

    @router.put("")
    async def update(bank: str, request: Request) -> Response:
        return await put(bank, request, update=True)

    async def take(bank: str, ids: list[str], numbers: list[int]) -> Response:
        target = banks[bank]
        async with service.changing.admitted():
            gone = await in_thread(
                lambda _: remove_documents(target, ids, numbers, limits.timeout_s)
            )
        return JSONResponse({"removed": len(gone)})

    @router.delete("/{number}")
    async def remove_one(bank: str, number: _Number) -> Response:
        return await take(bank, [], [number])

    @router.post("/remove")
    async def remove(bank: str, request: Request) -> Response:
        form = parsed(Removal, await json_body(request))
        return await take(bank, form.ids, form.numbers)

    return router
