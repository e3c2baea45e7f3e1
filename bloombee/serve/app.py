"""The application: which path is whose, and how what goes wrong is told."""

from __future__ import annotations

import logging

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from bloombee.errors import BloomBeeError
from bloombee.quote import quoted
from bloombee.runtime import Runtime
from bloombee.serve import metrics, page
from bloombee.serve.answers import Model, ModelList
from bloombee.serve.chat_completions import ChatCompletions
from bloombee.serve.completions import Completions
from bloombee.serve.document import document
from bloombee.serve.health import OnceUp, Pulse, Start
from bloombee.serve.keys import Clients, Guard
from bloombee.serve.refusals import CHAT, COMPLETIONS, RESPONSES, Refusal, refusal_of
from bloombee.serve.responses import Responses
from bloombee.serve.service import Service

log = logging.getLogger(__name__)


def make_app(runtime: Runtime, *, model: str, clients: Clients | None = None, start: Start | None = None) -> Starlette:
    """The API of ``runtime``, which has been prepared, with its figures and its page. Until its pipeline is up all but the API
    is there.

    Args:
        model: what programs call its model.
        clients: whose keys are known; None: no key is asked for.

    ``state.is_ending`` is to be set when no more requests are taken: pages are let go then.
    """
    service, pulse = Service.of(runtime, model), Pulse(runtime, model, start or Start())

    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, BloomBeeError)
        return _response(refusal_of(error, request.url.path, pulse.again_s))

    app = Starlette(
        routes=[*_routes(service, pulse), *metrics.routes(runtime), *page.routes(runtime)],
        middleware=[Middleware(Guard, clients), Middleware(OnceUp, pulse)],
        exception_handlers={
            Refusal: _refused,
            BloomBeeError: failed,
            HTTPException: _not_found,
            ClientDisconnect: _gone,
            Exception: _broken,
        },
    )
    app.state.is_ending = False
    return app


def _routes(service: Service, pulse: Pulse) -> list[BaseRoute]:
    about = _About(service)
    return [
        Route(CHAT, ChatCompletions(service).create, methods=["POST"]),
        Route(COMPLETIONS, Completions(service).create, methods=["POST"]),
        Route(RESPONSES, Responses(service).create, methods=["POST"]),
        Route("/v1/models", about.models, methods=["GET"]),
        Route("/v1/models/{model:path}", about.model, methods=["GET"]),
        Route("/health", pulse.answer, methods=["GET"]),
        Route("/openapi.json", about.openapi, methods=["GET"]),
    ]


class _About:
    """What is served."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._document = msgspec.json.encode(document(service.model))

    async def models(self, request: Request) -> Response:
        return _json(ModelList(data=[self._model]))

    async def model(self, request: Request) -> Response:
        self._service.check_model(request.path_params["model"])
        return _json(self._model)

    async def openapi(self, request: Request) -> Response:
        return Response(self._document, media_type="application/json")

    @property
    def _model(self) -> Model:
        service = self._service
        return Model(id=service.model, created=service.created, max_model_len=service.runtime.card.max_positions)


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _response(refusal: Refusal) -> Response:
    return Response(refusal.body, refusal.status, refusal.headers, "application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _response(error)


async def _not_found(request: Request, error: Exception) -> Response:
    """Of Starlette's router: no such path, or another method."""
    assert isinstance(error, HTTPException)
    said = f"{request.method} {quoted(request.url.path)}: {error.detail}"
    return _response(Refusal(error.status_code, said, headers=error.headers))


async def _gone(request: Request, error: Exception) -> Response:
    """Nobody is there to be told."""
    return Response(status_code=499)


async def _broken(request: Request, error: Exception) -> Response:
    return _response(Refusal(500, "internal error, please report it; the server's log has it", kind="server_error"))
