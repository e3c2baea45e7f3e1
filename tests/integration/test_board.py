"""The example board, by Prometheus itself: every expression on it is evaluated over what a serving swarm has told."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serve_kit import Served, served
from swarm_kit import Swarm

BOARD = Path(__file__).parents[2] / "examples" / "grafana.json"
CONFIG = """
global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}
scrape_configs:
  - job_name: bloombee
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""
LISTENING = re.compile(r'msg="Listening on" address=(\S+)')
MAY_BE_UNKNOWN = {'bloombee_link_bandwidth_bytes_per_second{job=~".*"}'}
"""Until a queue has stood somewhere."""
pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="there is no prometheus on the path")


def expressions() -> list[str]:
    """As Grafana sends them, for all jobs and over the last ten seconds."""
    found: list[str] = []

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            found.extend(value for name, value in part.items() if name == "expr")
        for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            walk(inner)

    walk(json.loads(BOARD.read_text("utf-8")))
    return [one.replace("$job", ".*").replace("$__rate_interval", "10s") for one in found]


class Prometheus:
    """That scrapes a server."""

    def __init__(self, address: str) -> None:
        self._address = address

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Its series now. Raises HTTPError: it is no expression."""
        url = f"http://{self._address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found


@contextlib.contextmanager
def scraping(server: Served, folder: Path) -> Iterator[Prometheus]:
    (folder / "prometheus.yml").write_text(CONFIG.format(port=server.port))
    options = (f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", "--web.listen-address=127.0.0.1:0")
    process = subprocess.Popen(["prometheus", *options], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        address = next(found[1] for line in process.stderr if (found := LISTENING.search(line)))
        next(line for line in process.stderr if "ready to receive" in line)
        yield Prometheus(address)
    finally:
        process.kill()
        process.communicate()


def test_every_expression_has_an_answer(make_swarm: Callable[..., Swarm], tmp_path: Path) -> None:
    """Of a swarm that answers, drafts and is asked the same again; only what no frame of a link has shown may have no series."""
    missing = set(expressions())
    assert len(missing) > 20
    swarm = make_swarm(model="demo", workers=2, dtype="float32", draft="ngrams", objective="throughput")
    with served(swarm) as server, scraping(server, tmp_path) as prometheus:
        while missing - MAY_BE_UNKNOWN:
            swarm.generate("def add(a, b):\n" * 8, max_new_tokens=32)
            missing -= {one for one in missing if has_numbers(prometheus.query(one))}


def has_numbers(series: list[dict[str, Any]]) -> bool:
    return any(math.isfinite(float(one["value"][1])) for one in series)
