"""What the application and those who listen to events are told while a swarm starts."""

from __future__ import annotations

import logging

import pytest

from bloombee.pipeline.commands import ReportMeasured
from bloombee.roles.bulletin import Bulletin
from bloombee.roles.progress import Progress
from bloombee.types import LoadProgress, SwarmEvent


def test_measuring_is_told_step_by_step_and_is_two_events() -> None:
    heard: list[LoadProgress] = []
    events: list[SwarmEvent | None] = []
    bulletin = Bulletin()
    bulletin.listen(events.append)
    progress = Progress(heard.append, bulletin)
    for report in (
        ReportMeasured(4, False, 0, 2),
        ReportMeasured(4, False, 2, 2),
        ReportMeasured(5, True, 1, 2),
        ReportMeasured(4, True, 2, 2),
    ):
        progress.measuring(report, f"w{report.worker}")
    assert [(told.name, told.phase, told.num_known_links, told.num_links) for told in heard] == [
        ("w4", "measuring", 0, 2),
        ("w4", "measuring", 2, 2),
        ("w5", "measuring", 1, 2),
        ("w4", "measured", 2, 2),
    ]
    assert [(event.name, str(event.kind), event.reason) for event in events if event is not None] == [
        ("w4", "measuring", "0 of 2 links known"),
        ("w5", "measuring", "1 of 2 links known"),
        ("w4", "measured", "2 of 2 links known"),
    ]


def test_a_callback_that_raises_is_called_once_and_costs_no_event(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[LoadProgress] = []

    def fail(told: LoadProgress) -> None:
        calls.append(told)
        raise ValueError

    events: list[SwarmEvent | None] = []
    bulletin = Bulletin()
    bulletin.listen(events.append)
    progress = Progress(fail, bulletin)
    with caplog.at_level(logging.CRITICAL):
        progress.measuring(ReportMeasured(4, False, 0, 2), "w4")
        progress.measuring(ReportMeasured(4, True, 2, 2), "w4")
    assert (len(calls), len(events)) == (1, 2)
