"""A timeline as a file for Perfetto: its slices nest, and are as long as the table says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perfetto_kit import Event, check_arrows, check_format, check_nesting, total_ms

from bloombee.errors import ConfigError
from bloombee.perfetto import trace_events, write
from bloombee.timeline import Chain, ProcessTrace, Timeline

PARTS = ("receive", "queue", "decode", "compute", "encode", "wait", "send")
SPANS_NS = st.lists(st.integers(0, 5000), min_size=len(PARTS), max_size=len(PARTS))
WIRES_NS = st.lists(st.integers(0, 9000), min_size=3, max_size=3)
MICROBATCH = st.tuples(st.integers(0, 20_000), WIRES_NS, SPANS_NS, SPANS_NS)
"""When it sets out; its wires; what two stages do."""


def timeline(microbatches: list[tuple[int, list[int], list[int], list[int]]], offset_ns: int = 0) -> Timeline:
    """Side by side, each of a sequence of its own, which goes round a second time as soon as it can."""
    head = ProcessTrace("head", 0, None, 2, "c")
    stages = [ProcessTrace(f"box-{index}", index + 1, index, 2, f"c{index}") for index in range(2)]
    for stage in stages:
        stage.clocks = {0: (-offset_ns, 10)}
    for sequence, (start, wires, *spans) in enumerate(microbatches):
        for turn in range(2):
            number = 2 * sequence + turn
            head.chains.append(Chain(number, start, (("send", 20),), 1 - turn, (sequence,)))
            now = start + 20
            for stage, wire, lengths in zip(stages, wires, spans, strict=False):
                now += wire
                stage.chains.append(Chain(number, now + offset_ns, tuple(zip(PARTS, lengths, strict=True))))
                now += sum(lengths)
            now += wires[2]
            head.chains.append(Chain(number, now, (("receive", 30), ("deliver", 40))))
            start = now + 100
    return Timeline([head, *stages])


def events_of(known: Timeline) -> list[Event]:
    trace = trace_events(known)
    check_format(json.loads(json.dumps(trace)))
    events: list[Event] = trace["traceEvents"]
    return events


@given(st.lists(MICROBATCH, min_size=1, max_size=8), st.integers(-(10**9), 10**9))
def test_slices_nest_and_are_as_long_as_the_table_says(
    microbatches: list[tuple[int, list[int], list[int], list[int]]], offset_ns: int
) -> None:
    known = timeline(microbatches, offset_ns)
    events, table = events_of(known), known.breakdown()
    assert check_nesting(events) >= 2
    assert check_arrows(events) == 3 * 2 * len(microbatches)
    assert total_ms(events, "sequence") == pytest.approx(table.num_tokens * table.total_ms)
    head, *stages = table.hops
    for part in ("receive", "wait", "send"):
        assert total_ms(events, "share", part) == pytest.approx(table.num_tokens * head.parts_ms[part])
    for pid, hop in enumerate(stages, 1):
        for part, each_ms in hop.parts_ms.items():  # both turns of a sequence are alike; the table has the second
            assert total_ms(events, "part", part, pid) == pytest.approx(2 * table.num_tokens * each_ms)
        assert total_ms(events, "device", pid=pid) == pytest.approx(total_ms(events, "part", "compute", pid))


def test_what_happens_side_by_side_is_on_tracks_of_its_own_and_these_are_used_again() -> None:
    spans = [1000] * len(PARTS)
    one, other = (0, [500] * 3, spans, spans), (3000, [500] * 3, spans, spans)
    later = (10**6, [500] * 3, spans, spans)
    names = [
        (event["pid"], event["args"]["name"])
        for event in events_of(timeline([one, other, later]))
        if event["ph"] == "M" and event["name"] == "thread_name"
    ]
    assert [name for pid, name in names if pid == 1] == ["under way 1", "under way 2", "device 1"]
    assert {name for pid, name in names if pid == 0} >= {"under way 1", "sequence 1", "sequence 2"}


def test_a_microbatch_that_never_came_home_is_there_without_wires() -> None:
    spans = [1000] * len(PARTS)
    known = timeline([(0, [500] * 3, spans, spans), (0, [500] * 3, spans, spans)])
    lost = known.stages[1].chains.pop()
    known = Timeline([known.head, *known.stages])
    events = events_of(known)
    of_it = [event for event in events if event.get("args", {}).get("microbatch") == lost.microbatch]
    assert {event["pid"] for event in of_it} == {0, 1}
    assert "wire" not in {event["name"] for event in of_it}
    assert check_arrows(events) == 3 * 3
    assert check_nesting(events) >= 2


def test_clocks_that_are_off_make_no_slice_of_less_than_nothing() -> None:
    known = timeline([(0, [500, 500, 500], [1000] * 7, [1000] * 7)])
    known.clocks[1] = (-700, 800)
    assert check_nesting(events_of(known)) >= 2


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        write(timeline([(0, [1] * 3, [1] * 7, [1] * 7)]), tmp_path / "nowhere" / "trace.json")
