"""Errors as a client sees them: in OpenAI's form, and without the program's internals."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from data_pipeline.errors import DataError
from msa_train.errors import BankError, ConfigError, ContextError, MSAError, RankError
from msa_train.memory.bank.lock import BusyError
from msa_train.memory.engine.engine_thread import EngineStopped

TOO_LONG = "context_length_exceeded"  # OpenAI's word: clients shorten a conversation then
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}


class ApiError(Exception):
    """A request that is answered with an error. code: a word that programs can compare."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, dict[str, str]]:
        kind = _TYPES.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


class ClientGone(ApiError):
    """The client closed its connection: there is nobody to answer."""

    def __init__(self) -> None:
        super().__init__(499, "client_gone", "the client went away")


def bad_request(message: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, code, message)


def to_api_error(error: Exception) -> ApiError:
    """What a client is told of an error; of an unforeseen one, only that the server failed."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextError):
        return bad_request(str(error), TOO_LONG)
    if isinstance(error, ConfigError | DataError):
        return bad_request(str(error))
    if isinstance(error, RankError | EngineStopped):
        code = "rank_failed" if isinstance(error, RankError) else "engine_stopped"
        return ApiError(503, code, str(error), {"Retry-After": "5"})
    if isinstance(error, BusyError):
        return ApiError(409, "writer_busy", str(error))
    if isinstance(error, BankError):
        return ApiError(500, "bank_error", str(error))
    if isinstance(error, TimeoutError):
        return ApiError(504, "timeout", "the request took longer than the server allows")
    if isinstance(error, MSAError):
        return ApiError(500, "engine_error", str(error))
    return ApiError(500, "internal_error", "the server failed; its log says why")
