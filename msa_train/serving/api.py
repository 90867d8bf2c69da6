"""The HTTP application: its routes, and what their errors become."""

from __future__ import annotations

import logging
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from data_pipeline.errors import DataError
from msa_train.errors import MSAError
from msa_train.serving import chat, memory_api
from msa_train.serving.access import requires
from msa_train.serving.errors import ApiError, bad_request, to_api_error
from msa_train.serving.metrics import CONTENT_TYPE
from msa_train.serving.middleware import RequestGuard
from msa_train.serving.state import ServerState

_OFFERED = (
    "of OpenAI's API this server has GET /v1/models and POST /v1/chat/completions (no responses, "
    "no embeddings, no legacy completions), and its own is under /v1/memory"
)
EXPLORER = Path(__file__).parent / "explorer"
log = logging.getLogger("msa_train.serving")


def create_app(state: ServerState) -> RequestGuard:
    """The whole server as an ASGI application."""
    app = FastAPI(title="msa", docs_url=None, redoc_url=None, openapi_url=None)
    for router in (_page_and_health(state), chat.routes(state), *memory_api.routes(state)):
        app.include_router(router)
    if EXPLORER.is_dir():
        app.mount("/explorer", StaticFiles(directory=EXPLORER), name="explorer")
    for kind in (ApiError, MSAError, DataError, Exception):
        app.add_exception_handler(kind, _failed)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _misread)
    return RequestGuard(app, state)


def _page_and_health(state: ServerState) -> APIRouter:
    routes = APIRouter()

    @routes.get("/")
    async def page() -> Response:
        index = EXPLORER / "index.html"
        if not index.is_file():
            raise ApiError(404, "no_page", "the explorer page is not installed")
        return FileResponse(index, headers={"Cache-Control": "no-cache"})

    @routes.get("/healthz")
    async def healthz() -> JSONResponse:
        unavailable = [bank.name for bank in state.banks if bank.error]
        running = "degraded" if unavailable else "ok"
        health = {
            "status": "draining" if state.draining else running,
            "model": state.model.name,
            "banks": [bank.name for bank in state.banks.opened],
            "hybrid": state.hybrid,
            "retrieval": state.retrieval,
            **({"unavailable": unavailable} if unavailable else {}),
        }
        return JSONResponse(health, 503 if state.draining else 200)

    @routes.get("/metrics", dependencies=[requires(state.keys, "read")])
    async def metrics() -> Response:
        return Response(state.metrics.text(), media_type=CONTENT_TYPE)

    return routes


async def _failed(_: Request, error: Exception) -> Response:
    api_error = to_api_error(error)
    # RequestGuard logs an internal error itself, with its traceback.
    if api_error.status >= 500 and api_error.code != "internal_error":
        log.error("a request failed: %s", error)
    return api_error.response()


async def _misread(_: Request, error: Exception) -> Response:
    """A path or query parameter of the wrong type or out of range."""
    assert isinstance(error, RequestValidationError)
    problems = [f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()[:5]]
    return bad_request("; ".join(problems)).response()


async def _refused(request: Request, error: Exception) -> Response:
    """A path or a method that the server does not have."""
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "refused")
    method, path = request.method[:10], request.scope["path"][:200]
    message = f"{method} {path}: {error.detail}; {_OFFERED}"
    return ApiError(error.status_code, code, message, error.headers).response()
