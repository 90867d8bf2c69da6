"""What a route needs of a request: a key that may, and a body of JSON."""

from __future__ import annotations

import asyncio

from fastapi import Depends, Request
from fastapi.params import Depends as Dependency

from msa_train.serving.failures import ApiError
from msa_train.serving.service import Service

_BODY_S = 60.0  # for a body to come in


def allowed(service: Service, access: str) -> Dependency:
    """Refuses requests whose key may not `access` (read or write), before their body is read."""

    async def check(request: Request) -> None:
        service.keys.check(request.headers.get("authorization"), access)

    return Depends(check)


async def json_body(request: Request) -> bytes:
    """Raises ApiError 415 for what is not declared as JSON, 408 for a body that does not come.

    A form of another site's page can send anything but that type without asking first.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "not_json", f"Content-Type is {kind[:80]!r}: send application/json")
    try:
        async with asyncio.timeout(_BODY_S):
            return await request.body()
    except TimeoutError:
        raise ApiError(408, "slow_body", f"the body did not come in {_BODY_S:.0f} s") from None
