"""OpenAI's endpoints: models and chat completions."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from msa_train.serving.access import allowed, json_body
from msa_train.serving.answer_stream import AnswerStream, EventStream, while_connected
from msa_train.serving.chat import chat_request
from msa_train.serving.failures import ApiError
from msa_train.serving.service import Service


def routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", dependencies=[allowed(service, "read")])
    model = {
        "id": service.model.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "msa",
    }

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @router.get("/models/{name}")
    async def one_model(name: str) -> dict[str, Any]:
        if name != model["id"]:
            raise ApiError(404, "model_not_found", f"there is no model {name!r}")
        return model

    @router.post("/chat/completions")
    async def chat(request: Request) -> Response:
        asked = chat_request(await json_body(request), service.model.name)
        service.check_length(asked.all_text)
        conversation = AnswerStream(service, asked, service.banks[asked.options.bank])
        if asked.stream:
            return EventStream(conversation)
        try:
            answer = await while_connected(request.receive, _whole(conversation))
        finally:
            conversation.close()
        return JSONResponse(answer)

    return router


async def _whole(conversation: AnswerStream) -> dict[str, Any]:
    await conversation.begin()
    return await conversation.whole()
