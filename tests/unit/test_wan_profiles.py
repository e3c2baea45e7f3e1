"""Shapes, schedules and profiles: what text means, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.profiles import LinkProfile, ProfileError, load_profile, profile_names
from bench.schedules import ScheduleError, Step, parse_schedule, read_schedule
from bench.shapes import Shape, ShapeError, parse_bandwidth, parse_duration

BASE = Shape(bandwidth_bits_per_s=100e6, delay_s=0.030)


def test_a_pair_is_a_profile_of_bandwidth_each_way_and_half_the_round_trip() -> None:
    link = load_profile("100M-60ms").link(7)
    assert link == LinkProfile(BASE, BASE)
    assert load_profile("1.5G-2s").link(0).forward == Shape(1.5e9, 1.0)
    assert load_profile("1G-512ms").link(0).forward.delay_s == pytest.approx(0.256)


@given(st.integers(1, 999), st.sampled_from("kMG"), st.integers(1, 999))
def test_every_pair_in_range_loads(number: int, unit: str, milliseconds: int) -> None:
    bits_per_s = number * {"k": 1e3, "M": 1e6, "G": 1e9}[unit]
    name = f"{number}{unit}-{milliseconds}ms"
    if bits_per_s > 1e11:
        with pytest.raises(ProfileError):
            load_profile(name)
        return
    shape = load_profile(name).link(0).forward
    assert (shape.bandwidth_bits_per_s, shape.delay_s) == (pytest.approx(bits_per_s), pytest.approx(milliseconds / 2000))


def test_named_profiles() -> None:
    assert profile_names()[:5] == ["lan", "500M-10ms", "250M-30ms", "125M-60ms", "20M-100ms"]
    assert load_profile("lan").is_unshaped
    regions = load_profile("three-regions")
    assert [link.forward.delay_s * 2e3 for link in regions.links] == pytest.approx([65, 75, 20])
    assert all(link.forward.bandwidth_bits_per_s != link.backward.bandwidth_bits_per_s for link in regions.links)
    assert all(
        1e8 <= (shape.bandwidth_bits_per_s or 0) <= 3e8 for link in regions.links for shape in (link.forward, link.backward)
    )
    home = load_profile("home").link(0)
    assert (home.forward.bandwidth_bits_per_s, home.backward.bandwidth_bits_per_s) == (20e6, 100e6)
    drift = load_profile("drift").link(0)
    assert drift.schedule is not None
    assert [step.shape.bandwidth_bits_per_s for step in drift.schedule.steps(drift.forward, "forward")] == pytest.approx(
        [12.5e6, 125e6, 125e6]
    )
    assert (drift.lasts_s, load_profile("drift").lasts_s, regions.lasts_s) == (20.0, 20.0, 0.0)


def test_a_named_pair_means_what_it_says() -> None:
    for name in profile_names():
        if name[0].isdigit():
            bandwidth, _, round_trip = name.partition("-")
            shape = Shape(parse_bandwidth(bandwidth), parse_duration(round_trip) / 2)
            assert load_profile(name).links == (LinkProfile(shape, shape),)


def test_scaled_multiplies_bandwidths_and_leaves_delays() -> None:
    link = load_profile("scaled:20M-100ms", hidden=512).link(0)
    assert link.forward.bandwidth_bits_per_s == pytest.approx(20e6 * 512 / 6656)
    assert link.forward.delay_s == 0.050
    assert load_profile("scaled:20M-100ms", hidden=6656).links == load_profile("20M-100ms").links
    assert load_profile("scaled:lan", hidden=64).is_unshaped
    absolute = LinkProfile(BASE, BASE, parse_schedule("1s bandwidth=10M\n2s bandwidth=x0.5")).scaled(0.5)
    assert absolute.schedule is not None
    steps = absolute.schedule.steps(absolute.forward, "forward")
    assert [step.shape.bandwidth_bits_per_s for step in steps] == [5e6, 25e6]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nope", "unknown profile 'nope'"),
        ("100M-", "unknown profile"),
        ("100X-60ms", "not a bandwidth"),
        ("100M-60", "not a time with its unit"),
        ("100M--60ms", "not a time"),
        ("0M-60ms", "from 1k to 100G"),
        ("100M-600s", "delay_s"),
        ("scaled:20M-100ms", "hidden size"),
        ("scaled:nope", "unknown profile"),
    ],
)
def test_a_wrong_name_says_what_is_wrong(name: str, words: str) -> None:
    with pytest.raises(ProfileError, match=words):
        load_profile(name, hidden=None if name == "scaled:20M-100ms" else 512)


def test_scaling_below_the_least_bandwidth_is_refused() -> None:
    with pytest.raises(ProfileError, match="hidden size 1"):
        load_profile("scaled:1M-100ms", hidden=1)


@pytest.mark.parametrize(
    "fields",
    [
        {"bandwidth_bits_per_s": 0},
        {"bandwidth_bits_per_s": float("nan")},
        {"bandwidth_bits_per_s": 1e12},
        {"delay_s": -0.001},
        {"delay_s": float("nan")},
        {"delay_s": 61},
        {"delay_s": 0.001, "jitter_s": 0.002},
        {"loss": 1},
        {"stall_s": -1},
    ],
)
def test_an_impossible_shape_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ShapeError, match=str(next(reversed(fields)))):
        Shape(**fields)


def test_a_schedule_gives_whole_shapes_in_order() -> None:
    schedule = parse_schedule(
        """
        # a comment
        1s    bandwidth=x0.1         # a tenth
        2s    jitter=50ms delay=100ms
        2s    forward bandwidth=10M
        3s    down
        3500ms up bandwidth=x1
        """
    )
    slow = Shape(10e6, 0.030)
    far = Shape(10e6, 0.100, 0.050)
    back = Shape(100e6, 0.100, 0.050)
    assert schedule.steps(BASE, "forward") == (Step(1, slow), Step(2, far), Step(3, far, False), Step(3.5, back))
    assert schedule.steps(BASE, "backward") == (Step(1, slow), Step(2, far), Step(3, far, False), Step(3.5, back))
    assert schedule.period_s is None


def test_a_direction_has_its_own_changes() -> None:
    schedule = parse_schedule("1s forward bandwidth=x0.5\n2s backward delay=x2")
    assert schedule.steps(BASE, "forward") == (Step(1, Shape(50e6, 0.030)),)
    assert schedule.steps(BASE, "backward") == (Step(2, Shape(100e6, 0.060)),)
    assert schedule.swapped().steps(BASE, "backward") == schedule.steps(BASE, "forward")
    profile = LinkProfile(BASE, Shape(1e6), schedule)
    assert profile.swapped().forward == Shape(1e6)
    assert profile.swapped().swapped() == profile


def test_a_reset_is_a_moment_of_the_whole_link() -> None:
    """A TCP connection has both directions: the forward one says so for the two. What was set before stays."""
    schedule = parse_schedule("1s down\n2s reset\n3s reset up bandwidth=x0.5\n4s forward delay=x2")
    half = Shape(50e6, 0.030)
    assert schedule.steps(BASE, "forward") == (
        Step(1, BASE, False),
        Step(2, BASE, False, reset=True),
        Step(3, half, reset=True),
        Step(4, Shape(50e6, 0.060)),
    )
    assert schedule.steps(BASE, "backward") == (Step(1, BASE, False), Step(3, half))
    swapped = schedule.swapped().steps(BASE, "forward")
    assert [step.at_s for step in swapped if step.reset] == [2, 3]


def test_a_sawtooth_is_a_ramp_that_repeats() -> None:
    schedule = parse_schedule("0s ramp bandwidth=x1..x0.2 over=4s every=1s\n5s repeat")
    assert schedule.period_s == 5
    steps = schedule.steps(BASE, "forward")
    assert [step.at_s for step in steps] == [0, 1, 2, 3, 4]
    assert [step.shape.bandwidth_bits_per_s for step in steps] == pytest.approx([100e6, 80e6, 60e6, 40e6, 20e6])


def test_each_round_begins_with_the_base() -> None:
    steps = parse_schedule("1s down\n2s up bandwidth=x0.5\n3s repeat").steps(BASE, "forward")
    assert steps == (Step(0, BASE), Step(1, BASE, False), Step(2, Shape(50e6, 0.030)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "at least one change"),
        ("# nothing", "at least one change"),
        ("1s", "a time and no change"),
        ("1 down", "line 1.*its unit"),
        ("-1s down", "line 1"),
        ("1s sideways", "expected up, down"),
        ("1s speed=3", "expected up, down"),
        ("1s bandwidth=fast", "not a bandwidth"),
        ("1s bandwidth=0M", "from 1k to 100G"),
        ("1s bandwidth=xnan", "not a number"),
        ("1s backward reset", "neither forward nor backward"),
        ("1s stall=x2", "takes no factor"),
        ("2s down\n1s up", "line 2.*lies before"),
        ("2s down\n2s repeat", "must come after"),
        ("1s repeat", "at least one change"),
        ("1s down\n2s repeat\n3s up", "nothing may follow"),
        ("1s ramp bandwidth=x1 over=1s", "a ramp is written"),
        ("1s ramp bandwidth=x1..10M over=1s", "both"),
        ("1s ramp bandwidth=x1..x0.1 over=0s", "must be > 0"),
        ("1s ramp bandwidth=x1..x0.1 over=9000s every=1us", "at most"),
        ("1s ramp delay=1ms..2ms over=3s\n2s up", "lies before"),
    ],
)
def test_an_impossible_schedule_is_refused(text: str, words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        parse_schedule(text)


@pytest.mark.parametrize("text", ["1s bandwidth=x0.000001", "1s jitter=31ms", "1s delay=1ms jitter=2ms", "1s loss=1"])
def test_a_change_to_an_impossible_shape_names_its_time(text: str) -> None:
    with pytest.raises(ScheduleError, match="at 1 s"):
        parse_schedule(text).steps(BASE, "forward")


def test_a_factor_of_no_limit_is_refused() -> None:
    with pytest.raises(ScheduleError, match="without a bandwidth limit"):
        parse_schedule("1s bandwidth=x0.5").steps(Shape(), "forward")


def test_a_trace_file_that_is_not_there_or_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    with pytest.raises(ScheduleError, match=r"trace\.txt"):
        read_schedule(path)
    path.write_text("1s sideways\n")
    with pytest.raises(ScheduleError, match=r"trace\.txt.*line 1"):
        read_schedule(path)
    path.write_text("1s down\n2s up\n")
    assert len(read_schedule(path).changes) == 2
