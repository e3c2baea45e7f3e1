"""What feeds the page, and what Prometheus is told, over real processes and HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serve_kit import Served, served
from swarm_kit import Swarm

from bloombee.roles.status import SwarmStatus


@pytest.fixture
def server(demo: Swarm) -> Iterator[Served]:
    with served(demo) as running:
        yield running


def _open(server: Served, path: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", path)
    return connection, connection.getresponse()


def _messages(answer: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    """(event, data), as they come."""
    lines = (line.decode().rstrip("\n") for line in answer)
    for line in lines:
        if line.startswith("event: "):
            yield line.removeprefix("event: "), json.loads(next(lines).removeprefix("data: "))


def _pages(swarm: Swarm) -> int:
    """That are listened for."""

    async def count() -> int:
        return sum(task.get_name() == "bloombee-page" for task in asyncio.all_tasks())

    return int(swarm.run(count()))


def test_a_page_is_greeted_told_the_status_and_what_has_happened_and_let_go_when_it_goes(server: Served, demo: Swarm) -> None:
    connection, answer = _open(server, "/events")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    messages = _messages(answer)
    assert next(messages) == ("hello", {"version": "0.1.0", "every_s": 1.0, "chat": True})
    kind, first = next(messages)
    status = msgspec.convert(first, SwarmStatus)
    assert (kind, status.state, len(status.links)) == ("status", "up", 4)
    told = [next(messages) for _ in range(4)]
    assert {event for event, _ in told} == {"event"}
    assert told[0][1]["kind"] == "joined"
    demo.generate("import ", max_new_tokens=8, ignore_eos=True)
    later = next(data for event, data in messages if event == "status" and data["served"]["tokens"] > first["served"]["tokens"])
    assert later["now_s"] > first["now_s"]
    assert _pages(demo) == 1
    answer.close()
    connection.close()
    while _pages(demo):  # the server finds out when it has something to say
        demo.run(asyncio.sleep(0.05))


def test_a_page_that_is_open_does_not_keep_a_server_from_ending(demo: Swarm) -> None:
    with served(demo) as server:
        connection, answer = _open(server, "/events")
        next(_messages(answer))
    with closing(connection):
        assert answer.read()[-2:] == b"\n\n"  # to its end, which was not cut off


def test_files_are_served_under_the_policy_and_none_from_elsewhere(server: Served) -> None:
    connection, answer = _open(server, "/")
    with closing(connection):
        assert answer.status == 200
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert b"BloomBee" in answer.read()
    for path, status in (
        ("/static/main.js", 200),
        ("/static/../page.py", 404),
        ("/static/%2e%2e/page.py", 404),
        ("/static/", 404),
    ):
        connection, answer = _open(server, path)
        with closing(connection):
            assert answer.status == status, path


def test_prometheus_is_told_what_was_served(server: Served, demo: Swarm) -> None:
    before = _figures(server)
    answer = demo.generate("import os, sys", max_new_tokens=20, ignore_eos=True)
    after = _figures(server)

    def grown(name: str, **labels: str) -> float:
        key = f"bloombee_{name}", frozenset(labels.items())
        return after[key] - before.get(key, 0.0)

    assert grown("generated_tokens_total") == 20
    assert grown("prompt_tokens_total") == len(answer.prompt_token_ids)
    assert grown("requests_total", outcome="length") == 1
    assert grown("time_to_first_token_seconds_count") == 1
    assert grown("time_per_token_seconds_count") == 19
    assert 0 < grown("time_to_first_token_seconds_sum") + grown("time_per_token_seconds_sum") <= grown("active_seconds_total")
    for index, stage in enumerate(demo.runtime.plan.stages):
        labels = {"stage": str(index), "worker": stage.name}
        assert grown("stage_rows_total", phase="decode", **labels) == 19
        assert grown("stage_rows_total", phase="prefill", **labels) == len(answer.prompt_token_ids)
        busy_s = sum(grown("stage_busy_seconds_total", phase=phase, **labels) for phase in ("decode", "prefill"))
        assert 0 < busy_s < grown("active_seconds_total")
        assert after["bloombee_stage_kv_pages_free", frozenset(labels.items())] == stage.num_pages


def _figures(server: Served) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    connection, answer = _open(server, "/metrics")
    with closing(connection):
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}
