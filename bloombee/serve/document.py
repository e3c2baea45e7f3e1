"""The OpenAPI document: made of the types that requests are read as and answers written from."""

from __future__ import annotations

from typing import Any

import msgspec

from bloombee.serve.answers import ChatChunk, ChatCompletion, Health, Model, ModelList, TextCompletion
from bloombee.serve.bodies import ChatBody, CompletionBody
from bloombee.serve.refusals import CHAT, COMPLETIONS, RESPONSES, ErrorBody
from bloombee.serve.response_bodies import ResponseBody
from bloombee.serve.response_objects import ResponseObject, StreamEvent
from bloombee.types import VERSION

_REF = "#/components/schemas/{name}"
_TYPES = (
    ChatBody,
    CompletionBody,
    ResponseBody,
    ResponseObject,
    StreamEvent,
    ChatCompletion,
    ChatChunk,
    TextCompletion,
    Model,
    ModelList,
    Health,
    ErrorBody,
)
_RETRY: dict[str, Any] = {"headers": {"Retry-After": {"schema": {"type": "integer"}}}}
_REFUSALS = {
    "400": "what the request says is wrong, or cannot be had",
    "401": "no key, or one that is not known",
    "403": "without keys: another name of this machine than localhost",
    "404": "another model",
    "408": "the body did not come in time",
    "413": "the body is too large",
    "415": "the body is not said to be JSON",
    "500": "the swarm failed",
    "503": "not now; ask again",
}


def document(model: str) -> dict[str, Any]:
    """OpenAPI 3.1 of a server of ``model``."""
    _, schemas = msgspec.json.schema_components(_TYPES, ref_template=_REF)
    for kind in (ChatBody, CompletionBody, ResponseBody):
        schemas[kind.__name__]["properties"]["model"] = {"enum": [model, None], "default": None}
    return {
        "openapi": "3.1.0",
        "info": {"title": "BloomBee", "version": VERSION, "description": "OpenAI's API over a swarm of workers."},
        "paths": {
            CHAT: {"post": _post("createChatCompletion", ChatBody, ChatCompletion, ChatChunk)},
            COMPLETIONS: {"post": _post("createCompletion", CompletionBody, TextCompletion, TextCompletion)},
            RESPONSES: {"post": _post("createResponse", ResponseBody, ResponseObject, StreamEvent)},
            "/v1/models": {"get": _get("listModels", ModelList)},
            "/v1/models/{model}": {
                "get": {
                    **_get("retrieveModel", Model),
                    "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"enum": [model]}}],
                }
            },
            "/health": {"get": _health()},
        },
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def _post(name: str, body: type, answer: type, chunk: type) -> dict[str, Any]:
    content = {
        "application/json": {"schema": _ref(answer)},
        "text/event-stream": {"schema": _event(chunk)},
    }
    return {
        "operationId": name,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(body)}}},
        "responses": {"200": {"description": "the answer", "content": content}, **_refusals(*_REFUSALS)},
    }


def _event(chunk: type) -> dict[str, Any]:
    """One of a stream."""
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "description": f"a {chunk.__name__}, an ErrorBody, or [DONE]",
    }
    return {"type": "object", "properties": {"event": {"type": "string"}, "data": data}, "required": ["data"]}


def _health() -> dict[str, Any]:
    """Of what is not up it says so with the same body and another status."""
    told = _get("health", Health)
    down = {"description": "requests are not answered now", "content": told["responses"]["200"]["content"], **_RETRY}
    return {**told, "responses": {**told["responses"], "503": down}}


def _get(name: str, answer: type) -> dict[str, Any]:
    answered = {"description": "what is there", "content": {"application/json": {"schema": _ref(answer)}}}
    return {"operationId": name, "responses": {"200": answered, **_refusals("401", "403", "404", "503")}}


def _refusals(*statuses: str) -> dict[str, Any]:
    content = {"application/json": {"schema": _ref(ErrorBody)}}
    return {
        status: {"description": _REFUSALS[status], "content": content, **(_RETRY if status == "503" else {})}
        for status in statuses
    }


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}
