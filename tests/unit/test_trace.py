"""Stamps of one process: what is handed over is what stands in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bloombee import trace as trace_module
from bloombee.errors import ConfigError
from bloombee.roles.tracing import STAGE_CHAIN, HeadTrace, StageTrace, open_tracer
from bloombee.wire.messages import Forward, Item, Opening, Sampling


class Stamps:
    """A clock that goes on by one at each look."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += 1
        return self.now


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def forward(microbatch: int) -> Forward:
    sampling = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 7, -1)
    return Forward(
        1, 1, microbatch, microbatch, 1, 2, (Item(5, 0, 0, 0, bytes(8), 1, Opening(2, sampling, 8, (), (), None, None), None),)
    )


def test_a_stage_writes_a_chain_without_holes(tmp_path: Path) -> None:
    tracer = open_tracer(tmp_path / "new" / "folder", "box/1", {"worker": 3, "stage": 1, "num_stages": 2})
    stage = StageTrace(tracer, Stamps())
    tracer.clock(0, -5, 2)
    stage.took(7, taken_ns=0)  # looks at the clock: 1
    stage.computed(7, 10, 20, 50)  # 2
    stage.sent(7, sending=60)  # 3
    tracer.close()
    tracer.close()
    process, clock, chain = lines(tracer.path)
    assert tracer.path.name == "box_1.jsonl"
    assert (process["process"], process["worker"], process["stage"], process["num_stages"]) == ("box/1", 3, 1, 2)
    assert clock == {"peer": 0, "offset_ns": -5, "error_ns": 2}
    assert (chain["microbatch"], chain["start_ns"]) == (7, 0)
    assert tuple(chain["spans"]) == STAGE_CHAIN
    assert list(chain["spans"].values()) == [1, 9, 10, 30, 2 - 50, 60 - 2, 3 - 60]
    assert sum(chain["spans"].values()) == 3


def test_frames_said_twice_are_traced_once(tmp_path: Path) -> None:
    tracer = open_tracer(tmp_path, "stage", {})
    stage = StageTrace(tracer, Stamps())
    stage.took(1, 0)
    stage.took(1, 100)  # resent while the first is under way
    stage.computed(1, 2, 3, 4)
    stage.computed(1, 8, 8, 8)
    stage.sent(1, 5)
    stage.sent(1, 6)  # resent after a reconnection
    stage.took(1, 200)  # and once more, to be dropped by the core: never computed, never sent
    stage.sent(1, 7)
    head = HeadTrace(tracer, Stamps())
    head.sent(forward(1), 9)
    head.sent(forward(1), 9)
    head.came_home(1, 10, 11)
    head.came_home(1, 10, 11)
    tracer.close()
    chains = lines(tracer.path)[1:]
    assert [list(chain["spans"]) for chain in chains] == [list(STAGE_CHAIN), ["send"], ["receive", "deliver"]]
    assert chains[0]["start_ns"] == 0
    assert (chains[1]["phase"], chains[1]["sequences"]) == (1, [5])


def test_microbatches_that_never_leave_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bloombee.roles.tracing.MAX_FLIGHTS", 8)
    stage = StageTrace(open_tracer(tmp_path, "stage", {}), Stamps())
    for microbatch in range(100):
        stage.took(microbatch, 0)
    for microbatch in range(100):
        stage.computed(microbatch, 0, 0, 0)
        stage.sent(microbatch, 0)
    stage.tracer.close()
    assert [chain["microbatch"] for chain in lines(stage.tracer.path)[1:]] == list(range(92, 100))


def test_a_file_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "MAX_FILE_BYTES", 400)
    tracer = open_tracer(tmp_path, "stage", {})
    for microbatch in range(100):
        tracer.chain(("send",), microbatch, (0, 1))
        tracer.flush()
    tracer.close()
    assert 200 < tracer.path.stat().st_size <= 400
    assert len(lines(tracer.path)) > 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ConfigError) as caught:
        open_tracer(tmp_path / "taken", "head", {})
    assert str(tmp_path / "taken" / "head.jsonl") in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_ends_the_trace_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "stage.jsonl").symlink_to("/dev/full")
    tracer = open_tracer(tmp_path, "stage", {})
    tracer.chain(("send",), 1, (0, 1))
    tracer.flush()
    tracer.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"the trace {tracer.path} ends here: [Errno 28] No space left on device"
    ]
