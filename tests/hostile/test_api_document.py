"""Requests drawn from the server's own OpenAPI document, and near misses: no answer that the document does not have, no hang."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from serve_kit import MODEL, Served, served
from swarm_kit import Swarm

from bloombee.serve.document import document

ANSWER_S = 60
api = schemathesis.openapi.from_dict(document(MODEL))


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """With room for little, so that what asks for much is refused."""
    swarm = Swarm(model="demo", workers=1, dtype="float32", kv_tokens=32, answer_tokens=2, max_waiting=16)
    with served(swarm) as running:
        yield running
    swarm.close()


@api.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_answer_is_in_the_document(case: Any, server: Served) -> None:
    answer = case.call(base_url=server.url, timeout=ANSWER_S)
    case.validate_response(answer, checks=[status_code_conformance, content_type_conformance, response_schema_conformance])
    assert answer.status_code < 500 or (answer.status_code == 503 and "retry-after" in answer.headers)
