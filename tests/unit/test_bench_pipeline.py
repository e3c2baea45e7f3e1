"""The benchmark's arithmetic and bookkeeping: windows, floors, cells, the log, options, predictions, verdicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import pipes
from bench.arguments import OptionError
from bench.cells import Cell, LogError, RunLog, interleave, make_cells
from bench.exact import judge_standin
from bench.floors import Floors, bubble, excess_per_hop_s, floors, microbatches_in_use, roofline_tokens_per_s
from bench.options import AUTO, parse
from bench.pipeline import main
from bench.planned import between, cut
from bench.predict import Setting, fit_paces, predict_by_cost, simulate
from bench.profiles import LinkProfile, Profile, ProfileError, load_profile
from bench.shapes import Shape
from bench.spread import interval, spread
from bench.summary import Subject, cell_line
from bench.techniques import TECHNIQUES, TechniqueError
from bench.texts import MAX_PROMPT_TOKENS, TextError, most_prompts, prompts
from bench.window import find_window
from bloombee.errors import ConfigError
from bloombee.models.shape import ModelShape
from bloombee.models.standin import standin_token
from bloombee.pace import Pace
from bloombee.plan.topology import Device, RowTime

# -- windows -----------------------------------------------------------------------------------


def test_a_window_starts_with_the_last_first_token_and_ends_when_all_have_enough() -> None:
    times = [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [2.5, 3.5, 4.5, 5.5]]
    found = find_window(times, 2)
    assert found is not None
    assert (found.start_s, found.stop_s, found.num_tokens) == (2.5, 4.5, 4)
    assert found.gaps_s == (1.0, 1.0, 1.0)
    assert found.tokens_per_s == 2.0
    assert found.time_per_token_s == 1.0


def test_a_window_may_begin_later() -> None:
    found = find_window([[0.0, 1.0, 2.0, 3.0, 4.0]], 2, since_s=1.5)
    assert found is not None
    assert (found.start_s, found.stop_s, found.num_tokens, found.gaps_s) == (1.5, 3.0, 2, (1.0,))
    assert find_window([[0.0, 1.0, 2.0]], 2, since_s=1.5) is None


def test_a_window_may_have_to_last() -> None:
    found = find_window([[0.0, 1.0, 2.0, 3.0, 4.0]], 1, since_s=0.5, least_s=2.5)
    assert found is not None
    assert (found.start_s, found.stop_s, found.num_tokens) == (0.5, 3.0, 3)


@pytest.mark.parametrize("times", [[], [[]], [[0.0, 1.0], []], [[0.0, 1.0, 2.0], [5.0, 6.0]]])
def test_no_window_while_a_sequence_has_too_few(times: list[list[float]]) -> None:
    assert find_window(times, 2) is None


# -- floors ------------------------------------------------------------------------------------

LINKS = [Shape(100e6, 0.010), Shape(50e6, 0.020), Shape(100e6, 0.030)]


def test_floors_are_delays_raw_payload_and_device_time() -> None:
    found = floors(LINKS, rows=10, row_bytes=12_500, computes_s=(0.001, 0.002, 0.003))
    assert found.delay_s == pytest.approx(0.060)
    assert found.wires_s == pytest.approx((0.010, 0.020))  # verdicts carry no activations
    assert found.compute_s == pytest.approx(0.006)
    assert found.loop_s == pytest.approx(0.096)
    assert found.bottleneck_s == pytest.approx(0.020)
    assert floors([Shape(None, 0.001)] * 3, rows=1, row_bytes=8, computes_s=(0.5,)).wire_s == 0
    assert floors([], rows=1, row_bytes=8, computes_s=(0.5,)).loop_s == 0.5


@pytest.mark.parametrize(
    ("batch", "microbatches", "used"), [(1, 3, (1, 1)), (32, 1, (1, 32)), (32, 3, (3, 11)), (4, 3, (2, 2)), (9, 4, (3, 3))]
)
def test_sequences_are_spread_as_the_scheduler_does(batch: int, microbatches: int, used: tuple[int, int]) -> None:
    assert microbatches_in_use(batch, microbatches) == used


def test_roofline_bubble_and_excess() -> None:
    of_one = Floors(delay_s=0.06, wires_s=(0.02, 0.02), computes_s=(0.03, 0.01, 0.01))
    assert roofline_tokens_per_s(8, 1, of_one) == pytest.approx(8 / 0.15)
    assert roofline_tokens_per_s(60, 6, of_one) == pytest.approx(60 / 0.18)  # six times the slowest stage
    assert bubble(8 / 0.15, 8, 1, of_one) == pytest.approx(0.8)
    assert bubble(60 / 0.18, 60, 6, of_one) == pytest.approx(0.0)
    assert bubble(1e9, 8, 1, of_one) == 0.0
    assert excess_per_hop_s(0.156, of_one, 3) == pytest.approx(0.002)


# -- cells and the log -------------------------------------------------------------------------


def test_repeats_are_whole_rounds_that_go_there_and_back() -> None:
    cells = make_cells(["a", "b"], ["plain", "all"], [1])
    assert cells == [Cell("a", "plain", 1), Cell("a", "all", 1), Cell("b", "plain", 1), Cell("b", "all", 1)]
    order = list(interleave(cells, 3))
    assert [cell for repeat, cell in order if repeat == 1] == cells[::-1]
    assert [cell for repeat, cell in order if repeat == 2] == cells
    assert len(set(order)) == 12


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file, asked = tmp_path / "deep" / "out.jsonl", {"tokens": 8, "profiles": ("a",)}
    log = RunLog(file, asked)
    log.add(Cell("a", "plain", 1), 1, {"x": 2})
    log.add(Cell("a", "plain", 1), 0, {"x": 1})
    again = RunLog(file, asked)
    assert again.resumed == 2
    assert again.has(Cell("a", "plain", 1), 0)
    assert not again.has(Cell("a", "plain", 1), 2)
    assert not again.has(Cell("a", "all", 1), 0)
    assert again.runs(Cell("a", "plain", 1)) == [{"x": 1}, {"x": 2}]


def test_a_line_cut_off_by_the_interruption_is_run_again(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "out.jsonl", {})
    log.add(Cell("a", "plain", 1), 0, {"x": 1})
    log.add(Cell("a", "plain", 1), 1, {"x": 2})
    log.part.write_text(log.part.read_text()[:-12])
    again = RunLog(tmp_path / "out.jsonl", {})
    assert again.resumed == 1
    assert not again.has(Cell("a", "plain", 1), 1)
    again.add(Cell("a", "plain", 1), 1, {"x": 3})
    assert RunLog(tmp_path / "out.jsonl", {}).runs(Cell("a", "plain", 1)) == [{"x": 1}, {"x": 3}]


def test_a_log_of_something_else_is_begun_anew(tmp_path: Path) -> None:
    RunLog(tmp_path / "out.jsonl", {"tokens": 8}).add(Cell("a", "plain", 1), 0, {})
    other = RunLog(tmp_path / "out.jsonl", {"tokens": 9})
    assert other.resumed == 0
    assert not other.has(Cell("a", "plain", 1), 0)
    other.keep([{"profile": "a"}, {"profile": "b"}])
    other.finish()
    assert (tmp_path / "out.jsonl").read_text() == '{"profile": "a"}\n{"profile": "b"}\n'
    assert not other.part.exists()


# -- options -----------------------------------------------------------------------------------


def test_without_arguments_it_is_the_short_run() -> None:
    bare, quick = parse([]), parse(["--quick"])
    assert bare.budget_s is not None
    assert quick.budget_s is None
    assert quick.profiles == ("500M-10ms", "125M-60ms", "20M-100ms")
    assert [technique.name for technique in quick.techniques] == ["plain", "all"]
    assert quick.batches == (1, 32)
    assert parse(["--batches", "auto,4"]).batches == (AUTO, 4)


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        (["--profiles", "moon"], ProfileError, "unknown profile 'moon'"),
        (["--pace", "slow"], ConfigError, "pace = 'slow'"),
        (["--techniques", "zip"], TechniqueError, "unknown technique 'zip'"),
        (["--batches", "0"], OptionError, "whole numbers from 1"),
        (["--batches", ","], OptionError, "at least one name"),
        (["--models", "standin:nix"], ConfigError, "no stand-in"),
        (["--dtype", "int8"], ConfigError, "dtype = 'int8'"),
        (["--profiles", ""], OptionError, "at least one name"),
        (["--batches", "٣"], OptionError, "whole numbers from 1"),
        (["--batches", "9" * 5000], OptionError, "whole numbers from 1"),
        (["--workers", "9" * 5000], OptionError, "whole number from 1 to 64"),
        (["--prompt-tokens", "65536"], OptionError, "from 1 to 1024"),
        (["--prompt-tokens", "1000", "--batches", "1024"], OptionError, "text for 512"),
        (["--budget", "nan"], OptionError, "must be seconds from 0"),
        (["--budget", "-1"], OptionError, "must be seconds from 0"),
        (["--json", ""], OptionError, "a file's path is needed"),
        (["--plots", ""], OptionError, "a path is needed"),
        (["--models", "llama:99999999999x9999999999"], OptionError, "llama:HIDDENxLAYERS"),
        (["--models", "llama:0x4"], OptionError, "llama:HIDDENxLAYERS"),
    ],
)
def test_bad_input_is_refused_at_once(
    arguments: list[str], kind: type[Exception], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(kind, match=says):
        parse(arguments)
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--plots"])
def test_what_cannot_be_written_is_refused_before_a_worker_starts(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    asked = ["--json", str(tmp_path / "log.jsonl"), option, str(tmp_path / "file" / "x" / "y")]
    assert main(asked) == 2
    assert capsys.readouterr().err.startswith("pipeline: cannot make the folder")


def test_a_log_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot write"):
        RunLog(tmp_path, {})


def test_a_result_that_cannot_be_written_at_the_end_leaves_the_log(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "out.jsonl", {})
    log.path.mkdir()
    with pytest.raises(LogError, match="the runs are in"):
        log.keep([])
    assert log.part.exists()


# -- predictions -------------------------------------------------------------------------------

RING = Setting(
    links=((Shape(20e6, 0.05), Shape(20e6, 0.05)),) * 3,
    paces=(Pace(0.013, 0.00005, 0.0005),) * 3,
    layers=(20, 20, 20),
    hidden=6656,
    row_bytes=13312,
    batch=8,
    microbatches=1,
    prompt_tokens=8,
    tokens=6,
)


def test_cost_model_and_simulator_agree_with_the_arithmetic() -> None:
    wire = 2 * 8 * 8 * 13312 / 20e6
    step = 0.15 + wire + 3 * (0.013 + 8 * 0.00005)
    assert predict_by_cost(RING).time_per_token_s == pytest.approx(step, rel=0.01)
    simulated = simulate(RING)
    assert simulated.time_per_token_s == pytest.approx(step, rel=0.01)
    assert simulated.tokens_per_s == pytest.approx(8 / step, rel=0.01)
    assert simulate(RING) == simulated


def test_more_microbatches_are_predicted_to_help_by_both() -> None:
    spread_out = replace(RING, microbatches=3)
    for predict in (predict_by_cost, simulate):
        assert predict(spread_out).tokens_per_s > 1.2 * predict(RING).tokens_per_s
    assert simulate(spread_out).tokens_per_s == pytest.approx(predict_by_cost(spread_out).tokens_per_s, rel=0.1)


def test_a_real_device_is_predicted_by_what_it_took() -> None:
    asked = Pace(1.0, 2.0, 3.0)
    assert fit_paces(asked, (0.1, 0.2), 8) == (asked, asked)
    first, second = fit_paces(None, (0.1, 0.2), 8)
    assert (first.fixed_s, second.fixed_s, first.decode_row_s) == (0.1, 0.2, 0.0)


# -- lines -------------------------------------------------------------------------------------

FIELDS = (
    "profile technique model dtype workers batch "
    "microbatches microbatch_rows pace decode_tokens_per_s time_per_token_s prefill_tokens_per_s "
    "time_to_first_token_s bytes_per_token floor_delay_s floor_wire_s floor_compute_s loop_floor_s "
    "roofline_tokens_per_s bubble predicted_tokens_per_s predicted_time_per_token_s cpu_share contended "
    "exact flips "
)


def _run(speed: float, **changed: Any) -> dict[str, Any]:
    return {
        "prefill_tokens_per_s": 100.0,
        "time_to_first_token_s": 0.2,
        "decode_tokens_per_s": speed,
        "gaps_s": [1 / speed] * 4,
        "computes_s": [0.001, 0.002, 0.001],
        "microbatch_rows": 1.0,
        "codec_ratios": [1.0, 1.0],
        "link_bytes_per_token": [600.0, 600.0, 60.0],
        "cpu_share": 0.2,
        "others_cpu_share": 0.0,
        "cpu_s_per_token": 0.01,
        "exact": True,
        "flips": 0,
        **changed,
    }


def _line(runs: list[dict[str, Any]]) -> dict[str, Any]:
    subject = Subject("demo", "bfloat16", 3, (3, 3, 2), 256, 512, None, None, 16, 8)
    profile = load_profile("125M-60ms")
    links = [profile.link(hop) for hop in range(3)]
    return cell_line(Cell("125M-60ms", "plain", 1), runs, subject, links, simulated=True)


def test_a_line_has_every_field_and_medians_of_its_runs() -> None:
    line = _line([_run(10.0), _run(9.0), _run(8.0, flips=2)])
    assert set(FIELDS.split()) <= line.keys()
    assert line["decode_tokens_per_s"]["p50"] == 9.0
    assert line["flips"] == 2
    assert line["exact"] is True
    assert line["loop_floor_s"] == pytest.approx(0.09 + 2 * 8 * 512 / 125e6 + 0.004)
    assert line["roofline_tokens_per_s"] == pytest.approx(1 / line["loop_floor_s"])
    assert line["predicted_time_per_token_s"] == pytest.approx(line["loop_floor_s"] + 3 * 0.47e-3, rel=0.001)
    assert line["simulated_time_per_token_s"] == pytest.approx(line["predicted_time_per_token_s"], rel=0.002)
    assert not line["contended"]


def test_a_contended_row_is_held_against_the_cores() -> None:
    line = _line([_run(10.0, cpu_share=0.7, exact=False)])
    assert line["contended"]
    assert line["roofline_tokens_per_s"] == pytest.approx(100 * len_cores())
    assert line["exact"] is False


def len_cores() -> int:
    from bench.usage import num_cores

    return num_cores()


def test_percentiles() -> None:
    assert spread([3.0, 1.0, 2.0]) == pytest.approx({"p10": 1.2, "p50": 2.0, "p90": 2.8})
    assert spread([5.0]) == {"p10": 5.0, "p50": 5.0, "p90": 5.0}


# -- texts and verdicts ------------------------------------------------------------------------


def test_prompts_are_distinct_and_of_the_length_asked() -> None:
    found = prompts(40, 64, None)
    assert len({tuple(one) for one in found}) == 40
    assert {len(one) for one in found} == {64}
    assert found == prompts(40, 64, None)


def test_as_many_prompts_as_are_promised_exist_and_more_is_an_error() -> None:
    assert len(prompts(most_prompts(768), 768, None)) == 1024
    assert len(prompts(most_prompts(MAX_PROMPT_TOKENS), MAX_PROMPT_TOKENS, None)) == 512
    with pytest.raises(TextError, match="hold 0 prompts of 65536"):
        prompts(1, 65536, None)


def test_a_standins_lost_doubled_or_misplaced_token_shows() -> None:
    prompt = [[1, 2, 3], [4, 5]]
    right = [[standin_token(seed, len(prompt[seed]) + index) for index in range(6)] for seed in range(2)]
    assert judge_standin(prompt, right).exact
    lost = [right[0][:2] + right[0][3:], right[1]]
    doubled = [right[0], [right[1][0], *right[1]]]
    for wrong in (lost, doubled, right[::-1]):
        assert not judge_standin(prompt, wrong).exact


def test_an_interval_holds_the_median_and_narrows_with_agreement() -> None:
    low, high = interval([[0.9], [1.0], [1.1], [1.0], [1.0]])
    assert 0.9 <= low <= 1.0 <= high <= 1.1
    assert interval([[1.25]] * 4) == (1.25, 1.25)


@pytest.mark.parametrize(
    "arguments",
    [
        ["flat", "--profiles", "lan"],
        ["flat", "--model", "demo"],
        ["knee", "--microbatches", "0-4"],
        ["knee", "--microbatches", "many"],
        ["knee", "--profiles", "drift"],
        ["flat", "--pace", "8"],
        ["knee", "--batch", "0"],
    ],
)
def test_what_pipes_cannot_do_is_said_at_once(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert pipes.main(arguments) == 2
    assert capsys.readouterr().err.startswith("pipes: ")


def test_a_planned_row_has_all_workers_and_the_links_of_its_order() -> None:
    shape = ModelShape(6656, 60)
    quick, slow = (Device("", layer=RowTime(seconds, seconds / 20)) for seconds in (0.001, 0.004))
    alike = cut(load_profile("20M-100ms"), [quick] * 3, shape, 32)
    assert (sum(alike.split), max(alike.split), len(alike.split)) in {(60, 20, 3), (60, 21, 3)}
    assert set(alike.profile.links) == set(load_profile("20M-100ms").links)
    unlike = cut(load_profile("20M-100ms"), [quick, quick, slow], shape, 32)
    assert len(unlike.split) == 3
    assert min(unlike.split) >= 60 - 2 * 21
    assert cut(load_profile("lan"), [quick], shape, 32).split == (60,)


def test_two_that_are_no_neighbours_are_as_far_apart_as_their_places() -> None:
    regions = load_profile("three-regions")
    one, two, three = regions.links
    assert [between(regions, *pair) for pair in ((1, 2), (2, 3), (3, 0), (3, 1))] == [one, two, three, three]
    assert [between(regions, *pair) for pair in ((2, 1), (1, 3), (2, 0))] == [one.swapped(), three.swapped(), one.swapped()]
    assert between(regions, 4, 1).forward.delay_s == 0
    long = Profile("five", tuple(LinkProfile(Shape(1e6 * n, 0.001 * n), Shape(2e6, 0.002)) for n in range(1, 6)))
    way = between(long, 1, 3)
    assert (way.forward.bandwidth_bits_per_s, way.forward.delay_s) == (1e6, 0.003)
    changing = cut(load_profile("drift"), [Device("", layer=RowTime(0.001))] * 3, ModelShape(6656, 60), 32)
    assert changing.profile.links == load_profile("drift").links


def test_plan_is_of_plan_and_all_alone() -> None:
    assert {name for name, technique in TECHNIQUES.items() if technique.is_planned} == {"plan", "all"}
