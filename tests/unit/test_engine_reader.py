"""Reading safetensors: only what is asked, converted on the way, and never past what the header may promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bloombee.engine.reader import CHUNK_BYTES, ShardReader
from bloombee.errors import ConfigError


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_arrive_in_the_wanted_dtype(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype) -> None:
    tensors = {"a": torch.randn(3, 5).to(stored), "scalar": torch.randn(()).to(stored), "b": torch.randn(7).to(stored)}
    save_file(tensors, tmp_path / "x.safetensors")
    with ShardReader(tmp_path / "x.safetensors") as shard:
        for name, tensor in tensors.items():
            out = torch.empty(tensor.shape, dtype=wanted)
            shard.read_into(shard.entries[name], out)
            assert torch.equal(out, tensor.to(wanted))


def test_conversion_in_chunks_covers_every_element(tmp_path: Path) -> None:
    tensor = torch.arange(CHUNK_BYTES // 4 * 2 + 17, dtype=torch.float32)
    save_file({"long": tensor}, tmp_path / "x.safetensors")
    moved: list[int] = []
    with ShardReader(tmp_path / "x.safetensors") as shard:
        out = torch.empty(tensor.shape, dtype=torch.float64)
        shard.read_into(shard.entries["long"], out, moved.append)
    assert torch.equal(out, tensor.double())
    assert sum(moved) == tensor.nbytes
    assert len(moved) == 3


def test_only_asked_bytes_are_counted(tmp_path: Path) -> None:
    save_file({"wanted": torch.ones(1000), "other": torch.ones(100_000)}, tmp_path / "x.safetensors")
    with ShardReader(tmp_path / "x.safetensors") as shard:
        header = shard.requested_bytes
        shard.read(shard.entries["wanted"])
        assert shard.requested_bytes - header == 4000
        assert header < 1000


GOOD = {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        (b"", b"", 0),
        (GOOD, b"", 1 << 62),
        (b"not json", b"", None),
        (b"[1, 2]", b"", None),
        ({"t": 5}, b"", None),
        ({"t": {"dtype": "F32", "shape": [2]}}, b"12345678", None),
        ({"t": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"12345678", None),
        ({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234567", None),
        ({"t": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, b"12345678", None),
        ({"t": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"12345678", None),
        ({"t": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}}, b"12345678", None),
        ({"t": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}}, b"12345678", None),
    ],
)
def test_lying_headers_are_refused(tmp_path: Path, header: object, data: bytes, length: int | None) -> None:
    with pytest.raises(ConfigError, match=r"x\.safetensors"):
        ShardReader(write(tmp_path / "x.safetensors", header, data, length))


def test_wrong_shape_and_missing_file(tmp_path: Path) -> None:
    with (
        ShardReader(write(tmp_path / "x.safetensors", GOOD, b"12345678")) as shard,
        pytest.raises(ConfigError, match="model wants"),
    ):
        shard.read_into(shard.entries["t"], torch.empty(1, 2))
    with pytest.raises(ConfigError, match="cannot open"):
        ShardReader(tmp_path / "none.safetensors")


def test_eight_bit_floats_are_refused_only_when_read(tmp_path: Path) -> None:
    header = {"t": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}
    with (
        ShardReader(write(tmp_path / "x.safetensors", header, b"12345678")) as shard,
        pytest.raises(ConfigError, match="F8_E4M3"),
    ):
        shard.read(shard.entries["t"])
