"""The codec's benchmark and the program that makes its input, on little data."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.codec import Codec, entropies, larger, measure, raw_bits, rows_of, sizes
from bloombee.errors import ConfigError
from bloombee.types import Dtype

ROOT = Path(__file__).resolve().parent.parent.parent


def normal(rows: int, channels: int) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((rows, channels)).astype(np.float32)
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def test_entropies_of_a_normal_variable() -> None:
    x = normal(2048, 256)
    order0, context = entropies(x[:1024], x[1024:], Dtype.BFLOAT16)
    assert order0 == pytest.approx(8 + 2.546, abs=0.01)  # H of floor(log2 |X|), sign and mantissa raw
    assert context <= order0
    assert context == pytest.approx(order0, abs=0.01)


def test_empty_planes_cost_nothing() -> None:
    x = normal(4, 64).astype(np.uint32)
    assert [raw_bits(x << 16, Dtype.FLOAT32), raw_bits(x << 16 | 1, Dtype.FLOAT32)] == [8, 16]


def test_rows() -> None:
    args = argparse.Namespace(device="cpu", isa="best", peers=False, seconds=0.001, larger=())
    rows = list(rows_of("x", normal(256, 128), Dtype.BFLOAT16, args))
    assert [r.message_bytes for r in rows] == [128 * 256, 512, 8192, 16384]
    assert all(r.exact and r.codec == "bloombee" for r in rows)
    assert rows[0].ratio == pytest.approx(128 * 256 / (128 * 256 / 1.49 + rows[0].table_bytes), rel=0.02)
    assert rows[1].ratio < rows[2].ratio < rows[3].ratio


def test_larger_messages_are_made_of_the_same_rows() -> None:
    args = argparse.Namespace(device="cpu", isa="best", peers=False, seconds=0.001, larger=(1 << 10, 1 << 20))
    x = normal(256, 128)
    *_, largest = rows_of("x", x, Dtype.BFLOAT16, args)
    assert (largest.message_bytes, largest.cut_bytes) == (1 << 20, 1 << 20), "1 KiB is no larger than what there is"
    assert largest.exact
    assert largest.ratio == pytest.approx(1.49, rel=0.02)
    assert {row.tobytes() for row in larger(x, 1 << 20)} <= {row.tobytes() for row in x}


def test_a_run_takes_what_its_device_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what the host waited for it."""
    x = normal(64, 128)
    runs = []
    codec = Codec("", "", lambda x: runs.append(x) or x.tobytes(), lambda message, _: message, spent=lambda run: run() and 0.002)
    found = measure(codec, [x], 0.001)
    assert found["encode_us"] == found["decode_us_p90"] == pytest.approx(2000)
    assert found["encode_gb_per_s"] == pytest.approx(x.nbytes / 0.002 / 1e9)
    assert len(runs) >= 4


@pytest.mark.parametrize("text", ["129MiB", "many"])
def test_messages_that_are_too_large_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        sizes(text)


def test_programs(tmp_path: Path) -> None:
    dumped, lines = tmp_path / "a.safetensors", tmp_path / "a.jsonl"
    dump = [sys.executable, "tools/dump_activations.py", "--model", "bloombee/demo_model/target", "--out", str(dumped)]
    subprocess.run([*dump, "--tokens", "512", "--decode-steps", "2"], cwd=ROOT, check=True, capture_output=True)
    bench = [sys.executable, "bench/codec.py", "--input", str(dumped), "--only", "prefill.L3", "--seconds", "0.01"]
    subprocess.run([*bench, "--json", str(lines)], cwd=ROOT, check=True, capture_output=True)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert {r["message_bytes"] for r in rows} == {256 * 256 * 2, 512, 8192, 16384}
    assert all(r["exact"] and r["tensor"] == "prefill.L3.bfloat16" and r["shape"] == [512, 256] for r in rows)
