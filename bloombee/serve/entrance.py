"""What programs reach: the application, and before there is one whoever says so."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from bloombee.serve import page
from bloombee.serve.answers import Health
from bloombee.serve.health import REASONS, Start, told, unready
from bloombee.serve.keys import Clients, Guard, refuse


class Entrance:
    """Open as soon as there is a socket; to :attr:`app` once that is there."""

    def __init__(self, model: str, clients: Clients | None, start: Start) -> None:
        self.app: Starlette | None = None
        self._before = starting_app(model, clients, start)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.app or self._before)(scope, receive, send)

    def is_ending(self) -> None:
        """No more requests are taken."""
        if self.app is not None:
            self.app.state.is_ending = True


def starting_app(model: str, clients: Clients | None, start: Start) -> Starlette:
    """While the model is being looked at: 503 to everybody, but for the page, which waits."""

    async def health(request: Request) -> Response:
        return told(Health(status="starting", reason=REASONS["starting"], model=model), start.again_s)

    return Starlette(
        routes=[*page.files(), Route("/health", health, methods=["GET"]), Mount("/", _later(start))],
        middleware=[Middleware(Guard, clients)],
    )


def _later(start: Start) -> ASGIApp:
    async def later(scope: Scope, receive: Receive, send: Send) -> None:
        await refuse(unready("starting", start.again_s), send)

    return later
