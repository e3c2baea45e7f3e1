"""Peers of the benchmark: options, links, lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.arguments import OptionError
from bench.cells import Cell
from bench.options import parse
from bench.peers.kinds import missing
from bench.peers.star import Star
from bench.pipeline import main
from bench.plots import of_ours
from bench.profiles import load_profile
from bench.screen import table
from bench.summary import Subject, peer_line

LLAMA = ["--models", "llama:64x3", "--peers"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--peer-env", "petals=/x"], "--peers, which is not given"),
        ([*LLAMA, "--peer-env", "vllm=/x"], "petals or llama.cpp"),
        ([*LLAMA, "--peer-env", "petals"], "NAME=DIR"),
        ([*LLAMA, "--peer-env", "petals="], "NAME=DIR"),
        ([*LLAMA, "--peer-env", "petals=/nowhere"], "no bin/python there; bench/peers/README.md says how"),
        ([*LLAMA, "--pace", "1,0,0"], "cannot be paced"),
        ([*LLAMA, "--batches", "1,auto"], "--batches as numbers"),
        (["--models", "standin:256x2", "--peers"], "computes nothing"),
        (["--peers", "--peer-env", "petals=/x"], "llama:HIDDENxLAYERS"),
        ([*LLAMA, "--dtype", "float16", "--peer-env", "petals=/x"], "petals has bfloat16, float32"),
    ],
)
def test_what_peers_cannot_do_is_refused_at_once(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError, match=says):
        parse(arguments)
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


def test_an_environment_that_lacks_the_peer_says_what_and_where_to_look(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    with pytest.raises(OptionError, match=r"cannot run it: .*petals.*; bench/peers/README.md"):
        parse([*LLAMA, "--peer-env", f"petals={tmp_path}"])


def test_without_environments_there_is_transformers_and_a_hint() -> None:
    options = parse(LLAMA)
    assert [(peer.technique, peer.python) for peer in options.peers] == [("transformers", sys.executable)]
    assert "petals and llama.cpp need --peer-env" in str(missing(options.peers))
    assert parse(["--models", "llama:64x3"]).peers == ()


def test_machines_of_a_star_are_as_far_apart_as_neighbours_of_the_ring() -> None:
    profile = load_profile("three-regions")
    star = Star(3, profile)
    assert len(set(star.ports)) == 3
    for machine in range(3):
        link = star._link(machine)
        assert link.forward == profile.link((machine - 1) % 3).forward
        assert link.backward == profile.link(machine).forward


def test_a_peers_line_leaves_empty_what_does_not_apply() -> None:
    run = {
        "prefill_tokens_per_s": 100.0, "time_to_first_token_s": 0.2, "decode_tokens_per_s": 8.0, "gaps_s": [0.1, 0.12],
        "link_bytes_per_token": [0.0, 5.0, 7.0], "cpu_share": 0.7, "others_cpu_share": 0.0, "cpu_s_per_token": 0.01,
        "exact": True, "flips": 1, "version": "petals 2.2",
    }  # fmt: skip
    subject = Subject("llama:64x3", "bfloat16", 3, (1, 1, 1), 64, 128, None, None, 16, 8)
    line = peer_line(Cell("lan", "petals", 1), [run, run], subject, simulated=True)
    assert line["workers"] == 3
    assert line["bytes_per_token"] == [0.0, 5.0, 7.0]
    assert line["loop_floor_s"] is line["bubble"] is line["microbatches"] is line["simulated_tokens_per_s"] is None
    assert line["contended"]
    assert peer_line(Cell("lan", "transformers", 1), [run], subject, simulated=False)["workers"] == 1
    assert table([line]).row_count == 1
    assert of_ours([line]) == []


def test_a_program_answers_and_ends_with_its_input() -> None:
    program = (
        "from bench.peers.protocol import Server, ends_its_group\n"
        "class Count:\n"
        "    version = 'count 1'\n"
        "    def prepare(self, batch, length): print('noise', length)\n"
        "    def prefill(self, prompts): return [len(one) for one in prompts]\n"
        "    def step(self, tokens): return [one + 1 for one in tokens]\n"
        "with ends_its_group():\n"
        "    server = Server(); server.configuration(); server.serve(Count())\n"
    )
    asked = '{}\n{"prefill": [[7, 7], [7, 7, 7]], "room": 2}\n{"decode": 2}\n'
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(asked)
    process.stdin.flush()
    answers = [process.stdout.readline() for _ in range(3)]
    assert "count 1" in answers[0]
    assert '"tokens": [2, 3]' in answers[1]
    assert '"tokens": [[3, 4], [4, 5]]' in answers[2]
    process.stdin.close()
    assert process.wait(30) != 0
    process.stdout.close()
