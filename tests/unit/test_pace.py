"""Paces: what is read, what is refused, how long a work takes, and that sleeping ends no earlier than asked."""

from __future__ import annotations

import time

import pytest

from bloombee.config import RuntimeConfig, WorkerConfig
from bloombee.errors import ConfigError
from bloombee.pace import Pace, parse_pace
from bloombee.plan.topology import Device
from bloombee.roles.precise_sleep import sleep_until, wake_exactly
from bloombee.types import Phase


def test_milliseconds_become_seconds() -> None:
    assert parse_pace("13,0.05,0.5") == Pace(0.013, 0.00005, 0.0005)
    assert parse_pace(" 1 , 0 , 2e1 ") == Pace(0.001, 0.0, 0.02)


def test_rows_count_by_phase() -> None:
    pace = Pace(0.010, 0.001, 0.0001)
    assert pace.seconds(Phase.DECODE, 32, num_layers=7) == pytest.approx(0.042)
    assert pace.seconds(Phase.PREFILL, 32, num_layers=7) == pytest.approx(0.0132)


def test_a_pace_of_some_layers_scales_with_the_span() -> None:
    pace = parse_pace("13,0.05,0.5/20")
    assert pace == Pace(0.013, 0.00005, 0.0005, layers=20)
    assert pace.seconds(Phase.DECODE, 32, num_layers=20) == pytest.approx(0.0146)
    assert pace.seconds(Phase.DECODE, 32, num_layers=5) == pytest.approx(0.0146 / 4)
    assert pace.seconds(Phase.PREFILL, 100, num_layers=40) == pytest.approx(0.126)
    whole = pace.for_layers(10)
    assert whole.layers is None
    assert whole.seconds(Phase.PREFILL, 100, num_layers=99) == pytest.approx(pace.seconds(Phase.PREFILL, 100, num_layers=10))


@pytest.mark.parametrize("text", ["13,0.05,0.5", "13,0.05,0.5/20"])
def test_planner_and_device_reckon_alike(text: str) -> None:
    """What the cost model takes of an emulated device is what the device sleeps, for any span."""
    pace = parse_pace(text)
    device = Device.paced("w0", pace, memory_bytes=10**9)
    assert device.memory_bytes == 10**9
    for layers in (1, 7, 20, 60):
        decode_s = device.stage.decode_s(32) + layers * device.layer.decode_s(32)
        prefill_s = device.stage.prefill_s(100) + layers * device.layer.prefill_s(100)
        assert decode_s == pytest.approx(pace.seconds(Phase.DECODE, 32, layers))
        assert prefill_s == pytest.approx(pace.seconds(Phase.PREFILL, 100, layers))


@pytest.mark.parametrize("pace", [Pace(0.013, 0.00005, 0.0005), Pace(0, 0, 0), Pace(1.25, 0.1, 0.000001), Pace(0.013, 0, 0, 20)])
def test_a_pace_reads_as_it_is_written(pace: Pace) -> None:
    assert parse_pace(str(pace)) == pace


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "13",
        "13,0.05",
        "13,0.05,0.5,1",
        "13,,1",
        "-1,0,0",
        "nan,0,0",
        "0,inf,0",
        "1;2;3",
        "1,2,3/",
        "1,2,3/0",
        "1,2,3/x",
        "1,2,3/-4",
        "1,2,3/2/2",
        "1,2/3",
    ],
)
def test_a_pace_without_numbers_says_what_is_wanted(text: str) -> None:
    for make in (lambda: parse_pace(text), lambda: RuntimeConfig(pace=text), lambda: WorkerConfig(pace=text)):
        with pytest.raises(ConfigError) as caught:
            make()
        assert caught.value.message.startswith(f"pace = {text!r}: must be three numbers of milliseconds")
        assert caught.value.fields["field"] == "pace"


def test_sleep_ends_at_its_moment_or_at_once() -> None:
    wake_exactly()
    moment = time.monotonic_ns() + 2_000_000
    sleep_until(moment)
    assert time.monotonic_ns() >= moment
    sleep_until(moment - 1_000_000_000)
