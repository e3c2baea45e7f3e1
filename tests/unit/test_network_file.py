"""A network's file: what it says of a pair, and that nonsense is refused with the path of the field."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bench.schedules import ScheduleError
from bloombee.config import LocalWorker
from bloombee.errors import ConfigError
from bloombee.plan.document import parse_network, read_network
from tools.wan_network import Network

FILE: dict[str, Any] = {
    "version": 1,
    "about": "a flat and an office",
    "nodes": {
        "head": {"up_bytes_per_s": 2.5e6, "down_bytes_per_s": 12.5e6, "delay_s": 0.010},
        "w0": {"beside": "head", "worker": {"pace": "13,0.05,0.5/20", "memory_bytes": 8_000_000_000, "load_bytes_per_s": 1e9}},
        "w1": {"up_bytes_per_s": 125e6, "delay_s": 0.005, "schedule": ["5s down", "6s up"]},
        "w2": {},
    },
    "links": [
        {"from": "w0", "to": "w1", "bandwidth_bytes_per_s": 1e6, "delay_s": 0.020, "jitter_s": 0.001, "loss": 0.01},
        {"from": "w1", "to": "w2", "delay_s": 0.1, "stall_s": 0.2, "schedule": ["1s reset"]},
    ],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """FILE with what a path of keys names set, or taken out for ``...``."""
    record = copy.deepcopy(FILE)
    *way, last = (int(part) if part.isdigit() else part for part in path.split("/"))
    place: Any = record
    for part in way:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return record


def test_a_pair_gets_the_narrowest_of_its_wires_and_all_of_the_delays() -> None:
    network = parse_network(FILE)
    assert network.bandwidth_bytes_per_s("w0", "w1") == 1e6  # its link, narrower than the line that it shares
    assert network.bandwidth_bytes_per_s("head", "w1") == 2.5e6  # the sender's up
    assert network.bandwidth_bytes_per_s("w1", "w0") == 12.5e6  # the receiver's down
    assert network.bandwidth_bytes_per_s("w2", "w1") is None
    assert network.delay_s("w0", "w1") == pytest.approx(0.035)
    assert network.delay_s("w1", "w0") == pytest.approx(0.015)
    assert network.delay_s("w1", "w2") == pytest.approx(0.105)


def test_neighbours_at_one_site_share_a_line_and_have_nothing_between_them() -> None:
    network = parse_network(FILE)
    assert network.lines("w0", "w1")[0] == network.lines("head", "w1")[0] == network.nodes["head"]
    assert network.lines("head", "w0") == (None, None)
    assert (network.delay_s("w0", "head"), network.bandwidth_bytes_per_s("w0", "head")) == (0.0, None)


def test_a_node_says_what_its_worker_is_like() -> None:
    network = parse_network(FILE)
    assert network.nodes["w0"].worker == LocalWorker(pace="13,0.05,0.5/20", memory_bytes=8 * 10**9, load_bytes_per_s=1e9)
    assert network.nodes["w1"].worker == LocalWorker()
    assert network.about == "a flat and an office"


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("version", ..., "version"),
        ("version", 2, "version"),
        ("version", True, "version"),
        ("nodes", ..., "nodes"),
        ("nodes", {}, "nodes"),
        ("nodes", ["head"], "nodes"),
        ("nodes/w2", 7, "nodes.w2"),
        ("nodes/w2", {"up_bytes_per_s": "20M"}, "nodes.w2.up_bytes_per_s"),
        ("nodes/w2", {"up_bytes_per_s": 0}, "nodes.w2.up_bytes_per_s"),
        ("nodes/w2", {"down_bytes_per_s": True}, "nodes.w2.down_bytes_per_s"),
        ("nodes/w2", {"delay_s": -1}, "nodes.w2.delay_s"),
        ("nodes/w2", {"delay_s": 61}, "nodes.w2.delay_s"),
        ("nodes/w2", {"up": 1e6}, "nodes.w2.up"),
        ("nodes/w2", {"schedule": "5s down"}, "nodes.w2.schedule"),
        ("nodes/w2", {"beside": "nowhere"}, "nodes.w2.beside"),
        ("nodes/w2", {"beside": "w2"}, "nodes.w2.beside"),
        ("nodes/w2", {"beside": "w0"}, "nodes.w2.beside"),
        ("nodes/w2", {"beside": "w1", "delay_s": 0.1}, "nodes.w2.beside"),
        ("nodes/w2", {"worker": {"memory": 1}}, "nodes.w2.worker.memory"),
        ("nodes/w2", {"worker": {"memory_bytes": 1}}, "nodes.w2.worker.memory_bytes"),
        ("nodes/w2", {"worker": {"pace": "fast"}}, "nodes.w2.worker.pace"),
        ("nodes/w2", {"worker": []}, "nodes.w2.worker"),
        ("links", {}, "links"),
        ("links/1", None, "links[1]"),
        ("links/1/from", ..., "links[1].from"),
        ("links/1/from", ["w0"], "links[1].from"),
        ("links/1/from", "w9", "links[1].from"),
        ("links/1/to", "w1", "links[1].to"),
        ("links/1/to", "w9", "links[1].to"),
        ("links/0/jitter_s", 0.021, "links[0].jitter_s"),
        ("links/0/loss", 1, "links[0].loss"),
        ("links/0/bandwidth_bytes_per_s", 1e12, "links[0].bandwidth_bytes_per_s"),
        ("links/0/bandwidth", 1e6, "links[0].bandwidth"),
        ("links/1", {"from": "w0", "to": "w1"}, "links[1]"),
        ("links/1/schedule", ["1s reset", 3], "links[1].schedule[1]"),
    ],
)
def test_nonsense_is_refused_with_the_path_of_the_field(path: str, value: Any, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_network(changed(path, value))
    assert caught.value.fields["field"] == field
    assert caught.value.message.startswith(field)


@pytest.mark.parametrize("record", [None, [], "x", 3])
def test_a_file_that_is_no_object_is_refused(record: Any) -> None:
    with pytest.raises(ConfigError, match=r"the file = .*: must be an object"):
        parse_network(record)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not a JSON file"),
        ('{"version": NaN}', "NaN is no number"),
        ('{"version": 1, "nodes": {"w0": {}, "w0": {}}}', "'w0' stands twice"),
        ("[" * 100_000, "not a JSON file"),
        (json.dumps(changed("nodes/w2", {"x": 1})), "nodes.w2.x: no such field"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "network.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        read_network(file)
    assert caught.value.message.startswith(f"{file}: ")
    with pytest.raises(ConfigError, match="cannot read this file"):
        read_network(tmp_path / "none.json")


def test_the_documented_example_is_a_network() -> None:
    text = (Path(__file__).parents[2] / "docs" / "wan.md").read_text()
    example = text.split("```json\n")[1].split("```")[0]
    network = parse_network(json.loads(example))
    Network(network)
    assert "head" in network.nodes


@pytest.mark.parametrize(
    ("path", "lines", "says"),
    [
        ("links/0/schedule", ["1s sideways"], "links: w0 -> w1: schedule: .*expected up, down, reset"),
        ("links/0/schedule", ["1s forward down"], "neither forward nor backward"),
        ("links/1/schedule", ["1s bandwidth=x0.1"], "links: w1 -> w2.*without a bandwidth limit"),
        ("nodes/w1/schedule", ["1s delay=5ms"], r"nodes.w1.schedule: delay: of an access line only its bandwidth"),
        ("nodes/w2/schedule", ["1s bandwidth=x0.1"], r"nodes.w2.schedule: .*without a bandwidth limit"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused_before_anything_starts(path: str, lines: list[str], says: str) -> None:
    with pytest.raises(ScheduleError, match=says):
        Network(parse_network(changed(path, lines)))


def test_a_port_of_an_unknown_node_is_refused() -> None:
    with pytest.raises(ConfigError, match="no node 'w9'; there are head, w0, w1, w2"):
        Network(parse_network(FILE), ports={"w9": 7000})
