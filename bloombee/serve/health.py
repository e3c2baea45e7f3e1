"""Whether requests are answered now, and if not why and for how long: for whoever watches a server, and for its programs."""

from __future__ import annotations

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from bloombee.runtime import Runtime
from bloombee.serve.answers import Condition, Health
from bloombee.serve.keys import refuse
from bloombee.serve.refusals import LEAST_RETRY_S, Refusal, not_now, retry_after
from bloombee.terminal import count

API = "/v1/"
REASONS: dict[str, str] = {
    "starting": "the model is being looked at",
    "waiting": "workers have yet to join",
    "loading": "workers load their layers",
    "recovering": "a worker was lost, and others take over",
    "ending": "the server is about to end",
}
_CONDITIONS: dict[str, Condition] = {
    "up": "ok",
    "waiting": "waiting",
    "loading": "loading",
    "recovering": "recovering",
    "down": "down",
}


class Start:
    """Of one server: how long it has taken so far, or took."""

    def __init__(self) -> None:
        self._began_at = time.monotonic()
        self._took_s: float | None = None

    def is_over(self) -> None:
        """The swarm is up."""
        self._took_s = time.monotonic() - self._began_at

    @property
    def again_s(self) -> float:
        """A start takes probably so long, or as long again as it has taken so far."""
        return time.monotonic() - self._began_at if self._took_s is None else self._took_s


class Pulse:
    """Of one Runtime that has been prepared, whether its swarm is up or not.

    Args:
        model: what programs call its model.
    """

    def __init__(self, runtime: Runtime, model: str, start: Start) -> None:
        self._runtime = runtime
        self._model = model
        self._start = start

    @property
    def again_s(self) -> float:
        """Until whoever is refused now, for want of a swarm, may have an answer: one that is down starts again, perhaps."""
        return LEAST_RETRY_S if self._runtime.state == "recovering" else self._start.again_s

    @property
    def refusal(self) -> Refusal | None:
        """Of every request, since the swarm has yet to come up. One that recovers goes on with what has been taken meanwhile."""
        state = self._runtime.state
        return unready(state, self.again_s) if state in ("waiting", "loading") else None

    async def answer(self, request: Request) -> Response:
        """200 where requests are answered, else 503: what a load balancer goes by."""
        condition = "ending" if request.app.state.is_ending else _CONDITIONS[self._runtime.state]
        reason = REASONS.get(condition, "")
        if condition in ("waiting", "down"):
            status = await self._runtime.status()
            reason = f"waiting for {count(status.missing, 'worker')}" if status.state == "waiting" else status.reason
        health = Health(status=condition, reason=reason, model=self._model, requests=self._runtime.num_requests)
        return told(health, self.again_s)


def told(health: Health, again_s: float) -> Response:
    """``health`` with its status."""
    is_ok = health.status == "ok"
    body = msgspec.json.encode(health)
    return Response(body, 200 if is_ok else 503, {} if is_ok else retry_after(again_s), "application/json")


def unready(condition: str, again_s: float) -> Refusal:
    return not_now(f"the swarm is not up yet: {REASONS[condition]}; try again", again_s, code=condition)


class OnceUp:
    """Lets no request of the API through to ``app`` before the swarm is up."""

    def __init__(self, app: ASGIApp, pulse: Pulse) -> None:
        self._app = app
        self._pulse = pulse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(API) and (refusal := self._pulse.refusal) is not None:
            await refuse(refusal, send)
            return
        await self._app(scope, receive, send)
