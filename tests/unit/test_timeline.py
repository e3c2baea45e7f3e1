"""Traces of several processes, each with a clock of its own, merged; what a token's parts are, and that they add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloombee import timeline
from bloombee.errors import ConfigError
from bloombee.timeline import Chain, ProcessTrace, Timeline, align
from bloombee.types import HEAD

MS = 1_000_000
STAGE = {"receive": 1, "queue": 2, "decode": 3, "compute": 40, "encode": 4, "wait": 5, "send": 6}
WIRES = (20, 30, 25)
"""head -> stage 0 -> stage 1 -> head"""
HEAD_RECEIVE, HEAD_WAIT, HEAD_SEND, DELIVER = 1, 7, 2, 3
TOKEN_MS = HEAD_RECEIVE + HEAD_WAIT + HEAD_SEND + sum(WIRES) + 2 * sum(STAGE.values())


def run(offsets: tuple[int, int], *, num_tokens: int = 5, clocks: bool = True, same: bool = False) -> list[ProcessTrace]:
    """Two stages whose clocks are ``offsets`` ahead of the head's; one sequence, a prefill and then decode."""
    head = ProcessTrace("head", 0, None, 2, "c")
    stages = [ProcessTrace(f"box-{i}", i + 1, i, 2, "c" if same else f"c{i}") for i in range(2)]
    if clocks:
        stages[0].clocks = {0: (-offsets[0], 10)}
        stages[1].clocks = {0: (-offsets[1] + 50 * MS, 60 * MS)}
        stages[0].clocks[2] = (offsets[1] - offsets[0], 5)
    now = 1000 * MS
    for microbatch in range(num_tokens):
        phase = 1 if microbatch == 0 else 0
        head.chains.append(Chain(microbatch, now, (("send", HEAD_SEND * MS),), phase, (9,)))
        now += HEAD_SEND * MS
        for stage, offset, wire in zip(stages, offsets, WIRES[:2], strict=True):
            now += wire * MS
            stage.chains.append(Chain(microbatch, now + offset, tuple((name, n * MS) for name, n in STAGE.items())))
            now += sum(STAGE.values()) * MS
        now += WIRES[2] * MS
        head.chains.append(Chain(microbatch, now, (("receive", HEAD_RECEIVE * MS), ("deliver", DELIVER * MS))))
        now += (HEAD_RECEIVE + HEAD_WAIT) * MS
    return [stages[1], head, stages[0]]


def test_every_part_is_found_whatever_the_clocks() -> None:
    got = Timeline(run((123 * MS, -77_000 * MS))).breakdown()
    assert [hop.name for hop in got.hops] == ["head", "stage 0 (box-0)", "stage 1 (box-1)"]
    assert got.hops[0].parts_ms == pytest.approx(
        {"receive": HEAD_RECEIVE, "wait": HEAD_WAIT, "send": HEAD_SEND, "wire": WIRES[0]}
    )
    for hop, wire in zip(got.hops[1:], WIRES[1:], strict=True):
        assert hop.parts_ms == pytest.approx({**STAGE, "wire": wire})
    assert got.total_ms == pytest.approx(TOKEN_MS)
    assert got.measured_ms == pytest.approx(TOKEN_MS)
    assert (got.num_tokens, got.num_seen) == (4, 4)
    assert got.clock_error_ms == pytest.approx(15 / MS)


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12), st.integers(-(10**9), 10**9))
def test_the_sum_does_not_depend_on_how_well_clocks_are_known(one: int, two: int, mistake: int) -> None:
    processes = run((one, two))
    offset, error = processes[0].clocks[0]
    processes[0].clocks[0] = (offset + mistake, error)
    got = Timeline(processes).breakdown()
    assert got.total_ms == pytest.approx(TOKEN_MS)


def test_a_frame_that_is_there_before_its_sender_knows_took_no_time_on_the_wire() -> None:
    processes = run((0, 0), same=True, clocks=False)
    for chain in (chains := processes[2].chains)[:]:
        spans = dict(chain.spans) | {"send": (STAGE["send"] + WIRES[1] + 2) * MS}
        chains[chains.index(chain)] = Chain(chain.microbatch, chain.start_ns, tuple(spans.items()))
    got = Timeline(processes).breakdown()
    assert got.hops[1].parts_ms["wire"] == 0
    assert got.hops[1].parts_ms["send"] == pytest.approx(STAGE["send"] + WIRES[1])
    assert got.total_ms == pytest.approx(TOKEN_MS)


def test_the_surest_way_between_clocks_is_taken() -> None:
    processes = run((5 * MS, 8 * MS))
    assert align(processes) == {0: (0, 0), 1: (-5 * MS, 10), 2: (-8 * MS, 15)}


def test_one_clock_is_known_exactly_unless_the_handshake_denies_it() -> None:
    processes = run((0, 0), same=True)
    processes[2].clocks[0] = (40, 60)
    assert align(processes)[1] == (0, 0)
    denied = run((0, 0), same=True)
    denied[2].clocks = {0: (40, 30)}
    assert align(denied)[1] == (40, 30)


def test_a_clock_that_nobody_knows_is_named() -> None:
    with pytest.raises(ConfigError, match="clock of 'box-"):
        Timeline(run((0, 0), clocks=False))
    assert Timeline(run((0, 0), clocks=False, same=True)).breakdown().share == pytest.approx(1)


def test_tokens_without_their_whole_way_are_counted_and_left_out() -> None:
    processes = run((0, 0))
    processes[0].chains = [chain for chain in processes[0].chains if chain.microbatch != 2]
    got = Timeline(processes).breakdown()
    assert (got.num_tokens, got.num_seen) == (3, 4)
    assert got.total_ms == pytest.approx(TOKEN_MS)
    for process in processes:
        process.chains = process.chains[:2]
    with pytest.raises(ConfigError, match="no token"):
        Timeline(processes).breakdown()


@pytest.mark.parametrize(
    ("keep", "says"), [((0, 2), "0 files of a head"), ((0, 1), "no file of stage 0"), ((0, 0, 1, 2), "two files")]
)
def test_files_that_are_not_one_run_are_refused(keep: tuple[int, ...], says: str) -> None:
    processes = run((0, 0))
    with pytest.raises(ConfigError, match=says):
        Timeline([processes[index] for index in keep])


# -- files -------------------------------------------------------------------------------------


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


HEADER = {"process": "x", "worker": 4, "stage": 0, "num_stages": 1, "clock": ""}


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        HEADER,
        {"peer": 0, "offset_ns": 9, "error_ns": 60},
        {"peer": 0, "offset_ns": 5, "error_ns": 6},
        {"peer": 0, "offset_ns": 8, "error_ns": 7},
        {"microbatch": 3, "start_ns": 9, "spans": {"send": 2}, "phase": 0, "sequences": [1, 2]},
    )
    with path.open("a") as file:
        file.write('{"microbatch": 4, "start')
    process = timeline.read(path)
    assert process.clocks == {0: (5, 6)}
    assert process.chains == [Chain(3, 9, (("send", 2),), 0, (1, 2))]
    assert process.chains[0].stop_ns == 11


@pytest.mark.parametrize("bad", ["not json", [], {"microbatch": 1}, {"peer": 1}, 5])
def test_a_line_that_is_none_is_named(tmp_path: Path, bad: object) -> None:
    path = write(tmp_path / "a.jsonl", HEADER, bad)
    with pytest.raises(ConfigError, match=r"a\.jsonl, line 2"):
        timeline.read(path)


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no trace files"):
        timeline.load([tmp_path])
    with pytest.raises(ConfigError, match="line 1"):
        timeline.load([write(tmp_path / "a.jsonl", {"worker": 1})])
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(ConfigError, match="empty"):
        timeline.read(tmp_path / "b.jsonl")
    with pytest.raises(ConfigError, match="cannot read"):
        timeline.load([tmp_path / "none"])
    with pytest.raises(ConfigError, match="/dev/zero, line 1"):
        timeline.load(["/dev/zero"])


def test_of_a_directory_only_traces_are_read(tmp_path: Path) -> None:
    """Decisions of the same run, other programs' lines, and what is no text may lie beside them."""
    write(tmp_path / "decisions.jsonl", {"type": "Planned", "worker": 1})
    write(tmp_path / "list.jsonl", [1, 2])
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\n")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ConfigError, match="no trace files"):
        timeline.load([tmp_path])
    head, stage = HEADER | {"worker": HEAD, "stage": None}, HEADER | {"clock": "box"}
    write(tmp_path / "head.jsonl", head | {"clock": "box"})
    write(tmp_path / "stage.jsonl", stage)
    assert timeline.load([tmp_path]).clocks == {HEAD: (0, 0), 4: (0, 0)}
    with pytest.raises(ConfigError, match=r"decisions\.jsonl, line 1"):
        timeline.load([tmp_path, tmp_path / "decisions.jsonl"])
    write(tmp_path / "stage.jsonl", stage, {"peer": 1})
    with pytest.raises(ConfigError, match=r"stage\.jsonl, line 2"):
        timeline.load([tmp_path])


def test_stages_without_a_file_are_named_with_what_to_do() -> None:
    stages = run((0, 0))
    head = stages[1]
    with pytest.raises(ConfigError, match="no file of stage 1 of 2: a worker on another machine writes its own there"):
        Timeline([head, stages[2]])
    with pytest.raises(ConfigError, match="no file of stages 0, 1 of 2"):
        Timeline([head])
    with pytest.raises(ConfigError, match="0 files of a head among 2"):
        Timeline([stages[0], stages[2]])
