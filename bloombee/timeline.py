"""``bloombee trace``: files of several processes (trace.py) merged on one clock; where the time of a token goes.

A token of a sequence takes from the verdict before it to its own, both by the head's clock. Between them the head
waits and sends, each stage does its chain of spans, and a wire joins ``sent`` here to ``taken`` there. The chain has no
holes, so its parts add up to that time by construction, for any clocks: an offset that is off lengthens one wire and
shortens another round the same ring. What the parts are held against is another measurement, the times at which
tokens had been delivered.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bloombee.errors import ConfigError
from bloombee.types import HEAD, Phase

STAGE_PARTS = ("receive", "queue", "decode", "compute", "encode", "wait", "send", "wire")
SUFFIX = ".jsonl"
HEADER = ("process", "worker", "stage", "num_stages", "clock")
"""Of a trace's first line, as :class:`ProcessTrace` takes them."""
MOST_HEADER_BYTES = 1 << 16
MOST_LINE_CHARACTERS = 1 << 20
"""What has a longer line is no trace, and may have no end."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Spans of one microbatch in one process, one after the other; nanoseconds on the process's clock."""

    microbatch: int
    start_ns: int
    spans: tuple[tuple[str, int], ...]
    phase: int | None = None
    sequences: tuple[int, ...] = ()

    @property
    def stop_ns(self) -> int:
        return self.start_ns + sum(length for _, length in self.spans)


@dataclass(slots=True)
class ProcessTrace:
    """One file. ``clocks``: peer -> (offset, error), peer's clock = own clock + offset."""

    name: str
    worker: int
    stage: int | None
    num_stages: int
    clock: str
    clocks: dict[int, tuple[int, int]] = field(default_factory=dict)
    chains: list[Chain] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Hop:
    """Mean milliseconds a token spends at one process and on the wire that leaves it."""

    name: str
    parts_ms: dict[str, float]

    @property
    def total_ms(self) -> float:
        return sum(self.parts_ms.values())


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Where the time between two tokens of a sequence goes, on average.

    Args:
        hops: the head, then the stages in order.
        num_tokens: over how many the mean is; of ``num_seen`` whose verdicts came.
        measured_ms: the same time, from when tokens had been delivered.
        clock_error_ms: by as much any wire may be too long and another too short.
    """

    hops: tuple[Hop, ...]
    num_tokens: int
    num_seen: int
    measured_ms: float
    clock_error_ms: float

    @property
    def total_ms(self) -> float:
        return sum(hop.total_ms for hop in self.hops)

    @property
    def share(self) -> float:
        """The parts' sum over the measured time."""
        return self.total_ms / self.measured_ms if self.measured_ms else 0.0


@dataclass(frozen=True, slots=True)
class TokenTime:
    """A token, from the verdict before it to its own, by the head's clock.

    Args:
        microbatch: that brought it.
        head_parts: name -> nanoseconds, one after the other from the start on, what the head does of that.
    """

    sequence: int
    microbatch: int
    start_ns: int
    stop_ns: int
    head_parts: Mapping[str, int]

    @property
    def ring_ns(self) -> int:
        """What it spends elsewhere."""
        return self.stop_ns - self.start_ns - sum(self.head_parts.values())


class Timeline:
    """Several processes' traces on the head's clock.

    Raises:
        ConfigError: no head among them, a stage missing, or a process whose clock nobody knows.
    """

    def __init__(self, processes: Sequence[ProcessTrace]) -> None:
        heads = [p for p in processes if p.worker == HEAD]
        if len(heads) != 1:
            raise ConfigError(
                f"{len(heads)} files of a head among {len(processes)}: give the files of one run, the head's and every worker's"
            )
        self.head = heads[0]
        stages = {p.stage: p for p in processes if p.stage is not None}
        # A stage knows of how many it is one; the head's file is begun before there is a plan.
        num_stages = max((p.num_stages for p in stages.values()), default=self.head.num_stages)
        missing = sorted(set(range(num_stages)) - stages.keys())
        if missing or len(stages) != len(processes) - 1:
            raise ConfigError(_incomplete(missing, num_stages))
        self.stages = [stages[index] for index in range(num_stages)]
        self.clocks = align(processes)
        """worker -> (what to add to its clock to have the head's, error)."""

    @property
    def clock_error_ns(self) -> int:
        return max(error for _, error in self.clocks.values())

    def on_head_clock(self, process: ProcessTrace, stamp_ns: int) -> int:
        return stamp_ns + self.clocks[process.worker][0]

    # -- tokens ----------------------------------------------------------------------------

    def breakdown(self) -> Breakdown:
        """Means over every token that has its whole chain.

        Raises:
            ConfigError: there is none.
        """
        rings, visits = self.rings, self._visits()
        sums: list[dict[str, int]] = [defaultdict(int) for _ in range(1 + len(self.stages))]
        num_tokens = 0
        for token in self.tokens():
            num_tokens += 1
            for total, parts in zip(sums, [token.head_parts, *rings[token.microbatch][1:]], strict=True):
                for name, length in parts.items():
                    total[name] += length
            sums[0]["wire"] += rings[token.microbatch][0]["wire"]
        if not num_tokens:
            raise ConfigError("no token has its whole way in these files: trace a run of at least two tokens, end it in order")
        num_seen = sum(len(microbatches) - 1 for microbatches in visits.values())
        names = ["head", *(f"stage {p.stage} ({p.name})" for p in self.stages)]
        hops = tuple(
            Hop(name, {k: v / num_tokens / 1e6 for k, v in total.items()}) for name, total in zip(names, sums, strict=True)
        )
        return Breakdown(hops, num_tokens, num_seen, self._measured_ms(visits), self.clock_error_ns / 1e6)

    def tokens(self) -> Iterator[TokenTime]:
        """Every one that has its whole chain, but the first of each sequence."""
        rings = self.rings
        for sequence, microbatches in self._visits().items():
            for before, now in itertools.pairwise(microbatches):
                if now in rings:
                    yield self._token(sequence, before, now, rings[now][0]["send"])

    def _token(self, sequence: int, before: int, now: int, send_ns: int) -> TokenTime:
        """From the verdict of ``before`` to that of ``now``."""
        verdict, forward = self._verdicts[before], self._forwards[now]
        receive_ns = verdict.spans[0][1]
        wait_ns = forward.start_ns - verdict.start_ns - receive_ns
        parts = {"receive": receive_ns, "wait": wait_ns, "send": send_ns}
        return TokenTime(sequence, now, verdict.start_ns, self._verdicts[now].start_ns, parts)

    def _visits(self) -> dict[int, list[int]]:
        """sequence -> its microbatches from the one that brought its first token, as far as verdicts came."""
        self._forwards = {c.microbatch: c for c in self.head.chains if c.phase is not None}
        self._verdicts = {c.microbatch: c for c in self.head.chains if c.phase is None}
        visits: dict[int, list[int]] = defaultdict(list)
        for number in sorted(self._forwards):
            forward = self._forwards[number]
            if number in self._verdicts:
                for sequence in forward.sequences:
                    if forward.phase == Phase.PREFILL:
                        visits[sequence] = [number]  # of a prompt in chunks, the last one's counts
                    else:
                        visits[sequence].append(number)
        return visits

    @functools.cached_property
    def rings(self) -> dict[int, list[dict[str, int]]]:
        """microbatch -> parts of each hop from the head's sending to the verdict's arrival, where all of them are known."""
        chains = [{c.microbatch: c for c in stage.chains} for stage in self.stages]
        arrivals = {c.microbatch: c.start_ns for c in self.head.chains if c.phase is None}
        rings = {}
        for sent in self.head.chains:
            number = sent.microbatch
            if sent.phase is None or number not in arrivals or not all(number in known for known in chains):
                continue
            hops, left = [dict(sent.spans)], sent.stop_ns
            for stage, known in zip(self.stages, chains, strict=True):
                chain = known[number]
                _add_wire(hops[-1], self.on_head_clock(stage, chain.start_ns) - left)
                hops.append(dict(chain.spans))
                left = self.on_head_clock(stage, chain.stop_ns)
            _add_wire(hops[-1], arrivals[number] - left)
            rings[number] = hops
        return rings

    def _measured_ms(self, visits: dict[int, list[int]]) -> float:
        """Mean time between the deliveries of two tokens of a sequence."""
        total_ns = count = 0
        for microbatches in visits.values():
            if len(microbatches) > 1:
                total_ns += self._verdicts[microbatches[-1]].stop_ns - self._verdicts[microbatches[0]].stop_ns
                count += len(microbatches) - 1
        return total_ns / count / 1e6 if count else 0.0


def _incomplete(missing: list[int], num_stages: int) -> str:
    if not missing:
        return "two files of one stage: give the files of one run, the head's and every worker's"
    stages = f"stage {missing[0]}" if len(missing) == 1 else f"stages {', '.join(map(str, missing))}"
    return (
        f"no file of {stages} of {num_stages}: a worker on another machine writes its own there, into the directory named by its"
        " --trace (else where it was started); copy it here and name it too"
    )


def _add_wire(hop: dict[str, int], wire: int) -> None:
    """What lies between two processes; the next may have the frame before the call that sent it has returned: that is no wire."""
    early = min(max(0, -wire), hop["send"])
    hop["send"] -= early
    hop["wire"] = wire + early


def align(processes: Iterable[ProcessTrace]) -> dict[int, tuple[int, int]]:
    """worker -> (offset, error) in nanoseconds: add the offset to its stamps to have them on the head's clock.

    The path of least total error over the handshakes between processes; processes that name the same clock as
    the head, and whose handshake does not deny it, have the head's.

    Raises:
        ConfigError: no path leads from the head to a process.
    """
    known = {p.worker: p for p in processes}
    edges: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for process in known.values():
        for peer, (offset, error) in process.clocks.items():
            # The peer's clock is ours + offset: to go from the peer's to ours is to take it away.
            edges[peer].append((process.worker, offset, error))
            edges[process.worker].append((peer, -offset, error))
    found: dict[int, tuple[int, int]] = {}
    ways = [(0, HEAD, 0)]
    while ways:
        error, worker, offset = heapq.heappop(ways)
        if worker in found:
            continue
        found[worker] = (offset, error)
        for peer, step, doubt in edges[worker]:
            if peer in known and peer not in found:
                heapq.heappush(ways, (error + doubt, peer, offset + step))
    head = known[HEAD]
    for worker, process in known.items():
        offset, error = found.get(worker, (0, 0))
        if process.clock and process.clock == head.clock and abs(offset) <= error:
            found[worker] = (0, 0)
        if worker not in found:
            raise ConfigError(f"nobody knows the clock of {process.name!r}: its file has no handshake with another one's process")
    return found


# -- files -------------------------------------------------------------------------------------


def load(paths: Iterable[str | Path]) -> Timeline:
    """Read trace files; of a directory, every one in it whose name ends in .jsonl. What has another beginning there is no trace.

    Raises:
        ConfigError: no such file, or one that is no trace; names file and line.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        files += filter(_begins_as_trace, sorted(path.glob(f"*{SUFFIX}"))) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"no trace files ({SUFFIX}) there: run with --trace DIRECTORY first")
    return Timeline([read(path) for path in files])


def _begins_as_trace(path: Path) -> bool:
    """Whether its first line is a trace's: a directory may have decisions (``--decisions``) beside the traces of a run."""
    try:
        with path.open("rb") as file:
            record = json.loads(file.readline(MOST_HEADER_BYTES))
    except OSError:
        return True  # to be refused by name
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.keys() >= set(HEADER)


def read(path: Path) -> ProcessTrace:
    """One file. A last line that was cut off (its process was killed) is left out. Raises ConfigError as :func:`load`."""
    try:
        lines = list(_whole_lines(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read this trace: {error}", path=str(path)) from error
    process: ProcessTrace | None = None
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if process is None:
                process = ProcessTrace(*(record[name] for name in HEADER))
            elif "peer" in record:
                peer, estimate = record["peer"], (int(record["offset_ns"]), int(record["error_ns"]))
                if peer not in process.clocks or estimate[1] <= process.clocks[peer][1]:
                    process.clocks[peer] = estimate
            else:
                process.chains.append(_chain(record))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{path}, line {number}: not a line of a trace", path=str(path), line=number) from error
    if process is None:
        raise ConfigError(f"{path}: an empty trace", path=str(path))
    return process


def _whole_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        while (line := file.readline(MOST_LINE_CHARACTERS)).endswith("\n") or len(line) == MOST_LINE_CHARACTERS:
            yield line
            if not line.endswith("\n"):
                return


def _chain(record: dict[str, Any]) -> Chain:
    spans = tuple((name, int(length)) for name, length in record["spans"].items())
    return Chain(record["microbatch"], record["start_ns"], spans, record.get("phase"), tuple(record.get("sequences", ())))


# -- for people --------------------------------------------------------------------------------


def show(breakdown: Breakdown) -> None:
    """Print the table to stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="where the time of a token goes (mean, ms)", title_justify="left")
    table.add_column("")
    for name in (*STAGE_PARTS, "in all", "%"):
        table.add_column(name, justify="right")
    total = breakdown.total_ms
    for hop in breakdown.hops:
        cells = [f"{hop.parts_ms[name]:.3f}" if name in hop.parts_ms else "" for name in STAGE_PARTS]
        table.add_row(hop.name, *cells, f"{hop.total_ms:.3f}", f"{100 * hop.total_ms / total:.1f}")
    sums = [sum(hop.parts_ms.get(name, 0.0) for hop in breakdown.hops) for name in STAGE_PARTS]
    table.add_section()
    table.add_row("in all", *(f"{value:.3f}" for value in sums), f"{total:.3f}", "100.0")
    table.add_row("%", *(f"{100 * value / total:.1f}" for value in sums), "100.0", "")
    console = Console(width=max(110, Console().width))
    console.print(table)
    console.print(
        f"{breakdown.num_tokens} of {breakdown.num_seen} tokens after their sequence's first; measured between deliveries:"
        f" {breakdown.measured_ms:.3f} ms a token; the parts make {100 * breakdown.share:.1f} % of it.",
        f"Clocks are known to +- {breakdown.clock_error_ms:.3f} ms: by that a wire may seem longer, another shorter; sums stand."
        if breakdown.clock_error_ms
        else "All processes share one clock.",
        sep="\n",
        highlight=False,
    )
