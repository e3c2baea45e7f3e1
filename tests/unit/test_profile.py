"""A device's figures fitted from measured passes: a known line is found again, and the error says what is not linear."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloombee.engine.profiling import kept
from bloombee.engine.profiling.kept import keep, look_up, turn
from bloombee.errors import ConfigError
from bloombee.models.shape import LayerKind, ModelShape
from bloombee.pace import parse_pace
from bloombee.pipeline.profiles import from_message, paced, to_message
from bloombee.plan.profile import Fit, Hardware, KindTime, Point, Profile, fit, fit_kinds, fit_output
from bloombee.plan.topology import RowTime
from bloombee.types import Phase
from bloombee.wire.messages import Profiled
from bloombee.wire.schema import decode_message, encode_message

GRID = [
    (phase, layers, rows, context)
    for phase, shapes in (
        (Phase.DECODE, ((1, 16), (4, 16), (16, 16), (1, 512), (8, 512))),
        (Phase.PREFILL, ((32, 0), (128, 0), (64, 448))),
    )
    for layers in (1, 3)
    for rows, context in shapes
]
figure = st.one_of(st.just(0.0), st.floats(1e-6, 1e-2))


def measured(truth: Fit, grid: list[tuple[Phase, int, int, int]] = GRID) -> list[Point]:
    points = [Point(*shape, seconds=1.0) for shape in grid]
    return [Point(p.phase, p.layers, p.rows, p.context, truth.seconds(p)) for p in points]


@given(figure, figure, figure, st.floats(1e-5, 1e-2), figure, figure, st.floats(0, 1e-5))
@settings(max_examples=40, deadline=None)
def test_a_known_line_is_found_again(s0: float, sd: float, sp: float, l0: float, ld: float, lp: float, lc: float) -> None:
    truth = Fit(RowTime(s0, sd, sp), RowTime(l0, ld, lp, lc), 0, 0)
    got = fit(measured(truth))
    assert got.worst_error < 1e-4
    for point in measured(truth, [(Phase.DECODE, 20, 8, 300), (Phase.PREFILL, 12, 100, 200)]):
        assert got.seconds(point) == pytest.approx(point.seconds, rel=0.01)


def test_figures_are_told_apart_and_never_negative() -> None:
    truth = Fit(RowTime(2e-3, 1e-4, 2e-5), RowTime(1e-3, 3e-4, 1e-4, 1e-6), 0, 0)
    got = fit(measured(truth))
    assert got.stage.fixed_s == pytest.approx(2e-3, rel=1e-6)
    assert got.layer.decode_row_s == pytest.approx(3e-4, rel=1e-6)
    assert got.layer.context_s == pytest.approx(1e-6, rel=1e-6)
    # More layers in less time: no device does that, whatever the clock said.
    odd = fit([Point(Phase.DECODE, 1, 1, 0, 2e-3), Point(Phase.DECODE, 3, 1, 0, 1e-3)])
    assert min(odd.stage.fixed_s, odd.layer.fixed_s, odd.layer.decode_row_s) >= 0
    assert odd.worst_error > 0.2


def test_the_error_says_how_far_from_linear_a_device_is() -> None:
    truth = Fit(RowTime(1e-3), RowTime(1e-3, 1e-4, 1e-5), 0, 0)
    points = measured(truth)
    bent = [Point(p.phase, p.layers, p.rows, p.context, p.seconds * (1.3 if p.rows == 16 else 1.0)) for p in points]
    got = fit(bent)
    assert 0.05 < got.worst_error < 0.3
    assert got.median_error < got.worst_error


def test_too_little_to_fit_is_refused() -> None:
    with pytest.raises(ConfigError):
        fit([Point(Phase.DECODE, 1, 1, 0, 1.0)])
    with pytest.raises(ConfigError):
        fit([Point(Phase.DECODE, 1, 1, 0, 1.0), Point(Phase.DECODE, 1, 2, 0, 0.0)])


def test_the_output_is_what_is_left_of_a_last_stage() -> None:
    layers = Fit(RowTime(1e-3), RowTime(1e-3, 1e-4), 0, 0)
    bare = measured(layers, [(Phase.DECODE, 1, rows, 16) for rows in (1, 8)])
    points = [Point(p.phase, 1, p.rows, 16, p.seconds + 5e-3 + 2e-4 * p.rows, picks=p.rows) for p in bare]
    got = fit_output(points, layers)
    assert got.fixed_s == pytest.approx(5e-3)
    assert got.decode_row_s == got.prefill_row_s == pytest.approx(2e-4)
    assert fit_output([], layers) == RowTime()
    lost_in_noise = [Point(p.phase, 1, p.rows, 16, 0.9 * p.seconds, picks=p.rows) for p in bare]
    assert fit_output(lost_in_noise, layers) == RowTime()


def a_profile() -> Profile:
    layers = Fit(RowTime(1e-3), RowTime(1e-3, 1e-4), 0.1, 0.2)
    points = tuple(measured(layers))
    return Profile("ab", "cpu", "bfloat16", 2, layers, RowTime(5e-3), 10**6, 512, Hardware(2**34), 5e9, None, points=points)


def test_a_profile_that_cannot_be_kept_leaves_nothing(tmp_path: Path) -> None:
    taken = tmp_path / "profile.json"
    (taken / "by a folder").mkdir(parents=True)
    keep(a_profile(), taken)
    assert list(tmp_path.iterdir()) == [taken]


def test_a_profile_survives_the_disk_and_becomes_a_device() -> None:
    profile = a_profile()
    again = Profile.from_json(profile.to_json())
    assert again == profile
    assert again.points == profile.points
    device = again.as_device("box")
    assert (device.layer, device.output, device.memory_bytes) == (profile.fit.layer, profile.output, 2**34)
    assert device.encode_bytes_per_s == 5e9
    assert device.decode_bytes_per_s == math.inf
    assert again.as_device("box", memory_bytes=5).memory_bytes == 5


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"format": 2}', json.dumps({**json.loads(a_profile().to_json()), "format": 0})]
)
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a profile"):
        Profile.from_json(text)


WINDOW = LayerKind(10**6, 512, window=128)
SHAPE = ModelShape(64, 3, kinds=(LayerKind(10**6, 512), WINDOW), kind_of=(0, 1, 1))


def of_kinds(*kinds: KindTime) -> Profile:
    return Profile("ab", "cpu", "float32", 1, Fit(RowTime(1.0), RowTime(2.5), 0.1, 0.4), RowTime(0.5), 1, 1, kinds=kinds)


def test_layers_that_differ_are_fitted_kind_by_kind() -> None:
    stage, full, window = RowTime(1e-3, 1e-5), RowTime(1e-3, 3e-4, 1e-4, 1e-6, 4e-6), RowTime(4e-3, 1e-4, 2e-4)
    points = []
    for kind, time in enumerate((full, window)):
        truth = Fit(stage, time, 0, 0)
        points += [dataclasses.replace(point, kind=kind) for point in measured(truth)]
    found, times = fit_kinds(points, (1, 3))
    assert found.worst_error < 1e-6
    for got, want in zip((found.stage, *times), (stage, full, window), strict=True):
        for rows, context in ((1, 0), (9, 0), (7, 300)):
            assert got.decode_s(rows, context) == pytest.approx(want.decode_s(rows, context), rel=1e-3)
            assert got.prefill_s(rows, context) == pytest.approx(want.prefill_s(rows, context), rel=1e-3)
    assert found.layer.fixed_s == pytest.approx((full.fixed_s + 3 * window.fixed_s) / 4)
    profile = Profile("ab", "cpu", "float32", 1, found, RowTime(), 1, 1, kinds=tuple(map(KindTime, (0, 1), times)))
    assert [profile.seconds(point) for point in points] == pytest.approx([point.seconds for point in points])


def test_a_device_takes_for_each_kind_of_layer_what_one_of_them_took() -> None:
    device = of_kinds(KindTime(0, RowTime(2.0)), KindTime(2, RowTime(3.0))).as_device("box", shape=SHAPE)
    assert device.kinds == (RowTime(2.0), RowTime(3.0))
    assert device.layer == RowTime(2.5)


@pytest.mark.parametrize(
    "kinds", [(), (KindTime(0, RowTime(2.0)),), (KindTime(0, RowTime(2.0)), KindTime(3, RowTime(3.0)))], ids=len
)
def test_a_device_whose_kinds_are_not_all_told_takes_their_mean_for_each(kinds: tuple[KindTime, ...]) -> None:
    device = of_kinds(*kinds).as_device("box", shape=SHAPE)
    assert [device.layer_of(kind) for kind in range(2)] == [RowTime(2.5)] * 2
    assert of_kinds(*kinds).as_device("box").kinds == ()


def test_a_careful_device_is_slower_by_the_error_of_what_was_measured() -> None:
    profile = of_kinds(KindTime(0, RowTime(2.0)), KindTime(2, RowTime(3.0)))
    device = profile.as_device("box", shape=SHAPE, careful=True)
    assert (device.stage, device.layer, device.output) == (RowTime(1.1), RowTime(2.75), RowTime(0.55))
    assert [time.fixed_s for time in device.kinds] == pytest.approx([2.2, 3.3])


def test_weights_that_stream_come_as_fast_as_the_slower_of_disk_and_device() -> None:
    speeds = {"to_device_bytes_per_s": 2e10, "disk_bytes_per_s": 1e9}
    assert Hardware(**speeds).stream_bytes_per_s == 1e9
    assert Hardware(to_device_bytes_per_s=5e8, disk_bytes_per_s=1e9).stream_bytes_per_s == 5e8
    assert Hardware(disk_bytes_per_s=1e9).stream_bytes_per_s == 1e9
    assert Hardware(to_device_bytes_per_s=5e8).stream_bytes_per_s is None
    device = dataclasses.replace(of_kinds(), hardware=Hardware(5, **speeds)).as_device("box")
    assert (device.memory_bytes, device.stream_bytes_per_s) == (5, 1e9)


def test_what_is_broken_in_the_cache_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    assert look_up(path) is None
    keep(a_profile(), path)
    assert look_up(path) == a_profile()
    path.write_bytes(path.read_bytes()[:-9])
    assert look_up(path) is None
    path.write_bytes(b"\xff\xfe")
    assert look_up(path) is None


class _Enough(Exception):
    pass


def test_processes_of_a_machine_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    waited = 0

    def alive() -> None:
        nonlocal waited
        waited += 1
        if waited > 2:
            raise _Enough

    with turn(alive):
        assert not waited
        with pytest.raises(_Enough), turn(alive):
            pytest.fail("two have their turn")
    with turn(alive):  # it was given back
        assert waited == 3


def test_nobody_waits_for_a_turn_where_nothing_can_be_kept_nor_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kept, "TURN_S", 0.0)
    with turn(pytest.fail), turn(pytest.fail):
        pass
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with turn(pytest.fail), turn(pytest.fail):
        pass


def test_a_device_has_the_memory_that_it_is_given() -> None:
    found = Profile(
        "m", "cpu", "float32", 1, Fit(RowTime(1, 2, 3, 4), RowTime(10, 20, 30, 40), 0.0, 0.0), RowTime(100, 200, 300), 1, 1
    )
    assert found.as_device("a").memory_bytes is None
    assert found.as_device("a", 5).memory_bytes == 5


def test_a_profile_survives_its_way_to_the_head() -> None:
    found = Profile(
        "d1" * 16,
        "cpu",
        "float32",
        2,
        Fit(RowTime(1, 2, 3, 4), RowTime(5, 6, 7, 8), 0.1, 0.2),
        RowTime(9),
        10,
        11,
        Hardware(1, 2, 3, 4.0, 5.0, 6.0, 7.0, 8, "abc"),
        None,
        13.0,
        (KindTime(0, RowTime(1), 14, 15), KindTime(3, RowTime(2), 16, 17)),
    )
    heard = decode_message(encode_message(to_message(found)))
    assert isinstance(heard, Profiled)
    assert from_message(heard) == found


def test_an_emulated_device_is_known_without_measuring() -> None:
    found = paced(parse_pace("4,1,0.5"), "digest", "bfloat16", Hardware(10**9))
    assert found.as_device("w0").memory_bytes == 10**9
    layered = paced(parse_pace("4,1,0.5/2"), "digest", "bfloat16", Hardware()).as_device("w0")
    assert (layered.stage, layered.layer) == (RowTime(), RowTime(0.002, 0.0005, 0.00025))
    assert (found.fit.stage, found.fit.layer, found.output) == (RowTime(0.004, 0.001, 0.0005), RowTime(), RowTime())
