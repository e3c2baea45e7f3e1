"""What a server says before there is a swarm, of one that starts, and of one that has gone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from bloombee.errors import LinkDown, QueueFull, RuntimeClosed
from bloombee.serve.entrance import Entrance
from bloombee.serve.health import Start
from bloombee.serve.keys import Clients, _digest
from bloombee.serve.refusals import CHAT, not_now, refusal_of

KEY = "0123456789abcdef"


def client(clients: Clients | None = None) -> TestClient:
    return TestClient(Entrance("demo", clients, Start()), base_url="http://localhost")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/metrics", "/events", "/openapi.json", "/what"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_all_but_the_page_is_to_come(method: str, path: str) -> None:
    answer = client().request(method, path, json={} if method == "POST" else None)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "starting"


def test_its_health_is_that_it_starts_and_the_page_is_there() -> None:
    answer = client().get("/health")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json() == {"status": "starting", "reason": "the model is being looked at", "model": "demo", "requests": 0}
    assert client().get("/").headers["content-type"].startswith("text/html")
    assert client().get("/static/page.css").status_code == 200


def test_keys_are_needed_from_the_start() -> None:
    guarded = client({_digest(KEY.encode()): "ada"})
    assert guarded.get("/v1/models").status_code == 401
    assert guarded.get("/health").status_code == 503
    assert guarded.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 503


def test_the_application_answers_once_it_is_there() -> None:
    async def here(request: Request) -> Response:
        return Response("here")

    entrance = Entrance("demo", None, Start())
    there = TestClient(entrance, base_url="http://localhost")
    assert there.get("/x").status_code == 503
    entrance.app = Starlette(routes=[Route("/x", here)])
    assert there.get("/x").text == "here"


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (3.1, "4"), (1e9, "60")])
def test_times_are_whole_seconds_within_bounds(seconds: float, header: str) -> None:
    assert not_now("later", seconds).headers["Retry-After"] == header


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (QueueFull("full", waiting=1, retry_after_s=6.5), "7"),
        (QueueFull("full"), "9"),
        (LinkDown("gone"), "9"),
        (RuntimeClosed("closed"), "9"),
    ],
)
def test_an_error_that_knows_when_says_so_and_others_take_what_a_start_takes(error: Any, header: str) -> None:
    refusal = refusal_of(error, CHAT, 8.2)
    headers: Mapping[str, str] = refusal.headers
    assert (refusal.status, headers["Retry-After"]) == (503, header)
    assert json.loads(refusal.body)["error"]["code"] == "overloaded"
