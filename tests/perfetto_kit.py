"""What must hold of any file that Perfetto is to open."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

ROUNDING_US = 0.001
"""A nanosecond: what the format's microseconds are read as."""
Event = dict[str, Any]


def check_nesting(events: list[Event]) -> int:
    """Slices of one track lie apart or inside each other; how deep, at most."""
    deepest = 0
    for slices in _by_track(events).values():
        open_until: list[float] = []
        for slice in sorted(slices, key=lambda slice: (slice["ts"], -slice["dur"])):
            while open_until and open_until[-1] <= slice["ts"] + ROUNDING_US:
                open_until.pop()
            end = slice["ts"] + slice["dur"]
            assert not open_until or end <= open_until[-1] + ROUNDING_US, f"{slice} ends after what it lies in"
            open_until.append(end)
            deepest = max(deepest, len(open_until))
    return deepest


def _by_track(events: list[Event]) -> dict[tuple[int, int], list[Event]]:
    tracks: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0
            tracks[event["pid"], event["tid"]].append(event)
    return tracks


def check_arrows(events: list[Event]) -> int:
    """Each begins once, ends once at another process, the one before the other where clocks say so too, and both ends lie at a
    slice; how many there are."""
    ends: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] in "sf":
            ends[event["id"]].append(event)
    tracks = _by_track(events)
    for both in ends.values():
        start, finish = sorted(both, key=lambda end: end["ph"], reverse=True)
        assert (start["ph"], finish["ph"]) == ("s", "f")
        assert both == [start, finish] or start["ts"] > finish["ts"]
        assert start["pid"] != finish["pid"]
        for end in both:
            slices = tracks[end["pid"], end["tid"]]
            assert any(one["ts"] - ROUNDING_US <= end["ts"] <= one["ts"] + one["dur"] + ROUNDING_US for one in slices)
    return len(ends)


def total_ms(events: list[Event], cat: str, name: str = "", pid: int | None = None) -> float:
    """Of all slices of a kind."""
    return sum(
        event["dur"] / 1e3
        for event in events
        if event["ph"] == "X" and event["cat"] == cat and name in ("", event["name"]) and pid in (None, event["pid"])
    )


_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "X": {"name": str, "cat": str, "ts": (int, float), "dur": (int, float), "pid": int, "tid": int, "args": dict},
    "s": {"name": str, "cat": str, "id": str, "ts": (int, float), "pid": int, "tid": int},
    "f": {"name": str, "cat": str, "id": str, "ts": (int, float), "pid": int, "tid": int, "bp": str},
    "M": {"name": str, "pid": int, "args": dict},
}
"""Of each kind of event: what the Trace Event Format says that it must have."""
_METADATA = {"process_name": "name", "process_sort_index": "sort_index", "thread_name": "name", "thread_sort_index": "sort_index"}


def check_format(trace: dict[str, Any]) -> None:
    """Every event is one of the Trace Event Format's, and every track has a name."""
    assert set(trace) == {"traceEvents", "displayTimeUnit"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    named: set[tuple[int, int]] = set()
    for event in trace["traceEvents"]:
        fields = _FIELDS[event["ph"]]
        assert all(isinstance(event[name], kind) for name, kind in fields.items()), event
        assert set(event) - {"ph", *fields} <= ({"tid"} if event["ph"] == "M" else set()), event
        if event["ph"] == "M":
            assert set(event["args"]) == {_METADATA[event["name"]]}
            if event["name"] == "thread_name":
                named.add((event["pid"], event["tid"]))
        assert event.get("bp", "e") == "e"
    assert {(event["pid"], event["tid"]) for event in trace["traceEvents"] if event["ph"] != "M"} <= named
