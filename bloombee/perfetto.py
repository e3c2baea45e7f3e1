"""``bloombee trace --perfetto``: a timeline as a file that ui.perfetto.dev opens.

A process each for the head and the stages, on the head's clock. What happens side by side is on tracks of its own, as many as it
takes, so that slices of one track lie apart or inside each other:

* ``under way``: a slice for each microbatch while a process has it, in it the parts of its chain one after the other; then
  the wire to the next process, to which an arrow leads.
* ``device`` (of a stage): the forwards alone. What is empty between them is the bubble.
* ``sequence`` (of the head): a slice for each token from the verdict before to its own. They are as long in all as the table
  of ``bloombee trace`` says, and the slices in them are the head's share of it.

Source: the Trace Event Format, of which this uses complete events ("X"), flows ("s", "f") and metadata ("M").
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bloombee.errors import ConfigError
from bloombee.timeline import ProcessTrace, Timeline

Event = dict[str, Any]
UNDER_WAY, DEVICE, SEQUENCE = "under way", "device", "sequence"
MOST_TRACKS = 10_000
"""Of one kind and process; what numbers tracks apart."""


def write(timeline: Timeline, path: str | Path) -> None:
    """Write :func:`trace_events` as JSON. Raises ConfigError if ``path`` cannot be written."""
    try:
        Path(path).write_text(json.dumps(trace_events(timeline)), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", field="perfetto", path=str(path)) from error


def trace_events(timeline: Timeline) -> dict[str, Any]:
    """The whole file."""
    processes = [_Process(pid, one) for pid, one in enumerate((timeline.head, *timeline.stages))]
    origin_ns = min((chain.start_ns for chain in timeline.head.chains), default=0)
    _Drawing(timeline, processes, origin_ns).draw()
    events = [event for process in processes for event in process.all_events()]
    # An arrow that takes no time begins before it ends, else whoever reads in this order drops it.
    events.sort(key=lambda event: (event.get("ts", -math.inf), event["ph"] == "f"))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


@dataclass(slots=True)
class _Process:
    """Events of one process, and which of its tracks are free from when on."""

    pid: int
    trace: ProcessTrace
    events: list[Event] = field(default_factory=list)
    _free_at: dict[str, list[int]] = field(default_factory=dict)

    def track(self, kind: str, start_ns: int, stop_ns: int) -> int:
        """One on which nothing lies in that time, from now on taken. Ask in the order of ``start_ns``."""
        tracks = self._free_at.setdefault(kind, [])
        number = next((number for number, free_at in enumerate(tracks) if free_at <= start_ns), len(tracks))
        tracks[number : number + 1] = [stop_ns]
        return list(self._free_at).index(kind) * MOST_TRACKS + number

    def slice(self, name: str, kind: str, track: int, start_ns: int, length_ns: int, args: Mapping[str, Any]) -> None:
        """``length_ns`` < 0, by clocks that are not known well: none."""
        event = {"ph": "X", "name": name, "cat": kind, "ts": start_ns / 1e3, "dur": max(0, length_ns) / 1e3, "args": dict(args)}
        self.events.append({**event, "pid": self.pid, "tid": track})

    def flow(self, ph: str, microbatch: int, hop: int, track: int, at_ns: int) -> None:
        """An end of an arrow, ``s`` or ``f``."""
        event = {"ph": ph, "name": "wire", "cat": "wire", "id": f"{microbatch}.{hop}", "ts": at_ns / 1e3}
        self.events.append({**event, "pid": self.pid, "tid": track} | ({"bp": "e"} if ph == "f" else {}))

    def all_events(self) -> Iterator[Event]:
        """With the names of it and of its tracks."""
        name = "head" if self.trace.stage is None else f"stage {self.trace.stage} ({self.trace.name})"
        yield {"ph": "M", "name": "process_name", "pid": self.pid, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": self.pid, "args": {"sort_index": self.pid}}
        for place, (kind, tracks) in enumerate(self._free_at.items()):
            for number in range(len(tracks)):
                tid = place * MOST_TRACKS + number
                yield {"ph": "M", "name": "thread_name", "pid": self.pid, "tid": tid, "args": {"name": f"{kind} {number + 1}"}}
                yield {"ph": "M", "name": "thread_sort_index", "pid": self.pid, "tid": tid, "args": {"sort_index": tid}}
        yield from self.events


@dataclass(frozen=True, slots=True)
class _Visit:
    """A microbatch at one process, which is the ``hop``-th that has it; at the head again when its verdict is home.

    Args:
        parts: nanoseconds, one after the other; ``wire`` comes last, if it is known.
        is_whole: its way round the whole ring is known.
    """

    microbatch: int
    hop: int
    start_ns: int
    parts: Mapping[str, int]
    is_whole: bool

    @property
    def left_ns(self) -> int:
        return self.start_ns + sum(length for name, length in self.parts.items() if name != "wire")

    @property
    def stop_ns(self) -> int:
        return self.left_ns + max(0, self.parts.get("wire", 0))


@dataclass(frozen=True, slots=True)
class _Drawing:
    timeline: Timeline
    processes: list[_Process]
    origin_ns: int

    def draw(self) -> None:
        for process in self.processes:
            for visit in sorted(self._visits(process), key=lambda visit: visit.start_ns):
                self._draw_visit(process, visit)
        for process in self.processes[1:]:
            for microbatch, start_ns, length_ns in sorted(self._forwards(process), key=lambda forward: forward[1]):
                track = process.track(DEVICE, start_ns, start_ns + length_ns)
                process.slice(f"microbatch {microbatch}", DEVICE, track, start_ns, length_ns, {"microbatch": microbatch})
        self._draw_tokens(self.processes[0])

    def _visits(self, process: _Process) -> Iterator[_Visit]:
        """Of whole rings as the table has them, wires included; of the others what the process says."""
        for chain in process.trace.chains:
            start_ns = self.timeline.on_head_clock(process.trace, chain.start_ns) - self.origin_ns
            is_verdict = process.pid == 0 and chain.phase is None
            hop = len(self.processes) if is_verdict else process.pid
            ring = self.timeline.rings.get(chain.microbatch)
            parts = dict(chain.spans) if ring is None or is_verdict else ring[hop]
            yield _Visit(chain.microbatch, hop, start_ns, parts, ring is not None)

    def _draw_visit(self, process: _Process, visit: _Visit) -> None:
        track = process.track(UNDER_WAY, visit.start_ns, visit.stop_ns)
        args = {"microbatch": visit.microbatch}
        name = "verdict" if visit.hop == len(self.processes) else "microbatch"
        process.slice(f"{name} {visit.microbatch}", UNDER_WAY, track, visit.start_ns, visit.left_ns - visit.start_ns, args)
        at_ns = visit.start_ns
        for part, length_ns in visit.parts.items():
            process.slice(part, "part", track, at_ns, length_ns, args)
            at_ns += length_ns
        if visit.hop > 0 and visit.is_whole:
            process.flow("f", visit.microbatch, visit.hop, track, visit.start_ns)
        if "wire" in visit.parts:
            process.flow("s", visit.microbatch, visit.hop + 1, track, visit.left_ns)

    def _forwards(self, process: _Process) -> Iterator[tuple[int, int, int]]:
        """(microbatch, start, length)"""
        for chain in process.trace.chains:
            at_ns = self.timeline.on_head_clock(process.trace, chain.start_ns) - self.origin_ns
            for name, length_ns in chain.spans:
                if name == "compute":
                    yield chain.microbatch, at_ns, length_ns
                at_ns += length_ns

    def _draw_tokens(self, head: _Process) -> None:
        tokens = sorted(self.timeline.tokens(), key=lambda token: token.start_ns)
        for token in tokens:
            start_ns, stop_ns = token.start_ns - self.origin_ns, token.stop_ns - self.origin_ns
            args = {"sequence": token.sequence, "microbatch": token.microbatch}
            track = head.track(SEQUENCE, start_ns, stop_ns)
            head.slice(f"token of {token.sequence}", SEQUENCE, track, start_ns, stop_ns - start_ns, args)
            for part, length_ns in itertools.chain(token.head_parts.items(), [("ring", token.ring_ns)]):
                head.slice(part, "share", track, start_ns, length_ns, args)
                start_ns += max(0, length_ns)
