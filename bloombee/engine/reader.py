"""Reading chosen tensors of safetensors files, and nothing else.

A shard is a little-endian uint64 header length, a JSON header ``{name: {dtype, shape, data_offsets}}`` and
the data. Everything in the header is checked before a byte of data is read: a checkpoint is input from
outside. Reads are positional (``preadv``) and land in the tensor's own memory, so loading holds one copy
of the weights and pulls no mapping into the process's resident set.
Source: the format's specification, github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bloombee.errors import ConfigError

MAX_HEADER_BYTES = 100_000_000
"""The format's own bound."""
CHUNK_BYTES = 8 << 20
"""Largest single read: what a progress bar moves by, and the staging a dtype conversion needs."""

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

Progress = Callable[[int], None]
"""Called with the number of bytes just read."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a shard: where its bytes lie and what they are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """Raises ConfigError for an element type that no weight of ours may have (8-bit floats, say)."""
        if self.dtype not in DTYPES:
            raise ConfigError(
                f"tensor {self.name} has element type {self.dtype}; allowed are {', '.join(DTYPES)}", tensor=self.name
            )
        return DTYPES[self.dtype]


class ShardReader:
    """One open safetensors file. ``requested_bytes`` counts every byte asked of the file, the header's included.

    Raises:
        ConfigError: the file is missing, or its header is truncated, lies about offsets, or is no JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requested_bytes = 0
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ConfigError(f"cannot open the weights {path}: {error.strerror}", path=str(path)) from error
        try:
            self.entries = self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read_into(self, entry: Entry, out: torch.Tensor, progress: Progress | None = None) -> None:
        """Fill ``out`` with ``entry``, converted to ``out``'s dtype and moved to its device.

        Args:
            out: contiguous, of as many elements as ``entry``; shapes must agree.

        Raises:
            ConfigError: the shapes disagree, or the file ends early.
        """
        if tuple(out.shape) != entry.shape:
            raise ConfigError(
                f"tensor {entry.name} of {self.path.name} is {list(entry.shape)}; the model wants {list(out.shape)}",
                tensor=entry.name,
            )
        flat = out.view(-1)
        source = entry.torch_dtype
        if source == out.dtype and out.device.type == "cpu":
            self._read(entry.offset, flat, progress)
            return
        step = CHUNK_BYTES // source.itemsize
        staging = torch.empty(min(step, flat.numel()), dtype=source)
        for start in range(0, flat.numel(), step):
            count = min(step, flat.numel() - start)
            self._read(entry.offset + start * source.itemsize, staging[:count], progress)
            flat[start : start + count].copy_(staging[:count])

    def locate(self, name: str) -> tuple[ShardReader, Entry]:
        """This file and the entry of ``name``. Raises ConfigError if it is not in it."""
        if name not in self.entries:
            raise ConfigError(f"{self.path} lacks {name}, which the index places there", tensor=name)
        return self, self.entries[name]

    def peek(self, entry: Entry, start: int, count: int) -> bytes:
        """Up to ``count`` of ``entry``'s bytes from ``start`` on, fewer at its end.

        Raises:
            ConfigError: the file ends early.
        """
        count = min(count, entry.num_bytes - start)
        data = os.pread(self._fd, count, entry.offset + start)
        self.requested_bytes += len(data)
        if len(data) < count:
            raise self._short(entry.offset + start + len(data))
        return data

    def read(self, entry: Entry, progress: Progress | None = None) -> torch.Tensor:
        """``entry`` as a new CPU tensor in the file's own dtype."""
        out = torch.empty(entry.shape, dtype=entry.torch_dtype)
        self.read_into(entry, out, progress)
        return out

    def _read(self, offset: int, flat: torch.Tensor, progress: Progress | None) -> None:
        """Fill the contiguous one-dimensional CPU tensor ``flat`` from ``offset``."""
        memory = memoryview(flat.view(torch.uint8).numpy())
        done = 0
        while done < len(memory):
            want = memory[done : done + CHUNK_BYTES]
            got = os.preadv(self._fd, [want], offset + done)
            if got == 0:
                raise self._short(offset + done)
            self.requested_bytes += got
            done += got
            if progress is not None:
                progress(got)

    def _read_header(self) -> dict[str, Entry]:
        file_bytes = os.fstat(self._fd).st_size
        prefix = os.pread(self._fd, 8, 0)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, file_bytes - 8):
            raise self._corrupt(f"header length {length} in a file of {file_bytes} bytes")
        raw = os.pread(self._fd, length, 8)
        self.requested_bytes += 8 + length
        try:
            header = json.loads(raw)
            return {
                name: self._entry(name, item, 8 + length, file_bytes) for name, item in header.items() if name != "__metadata__"
            }
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise self._corrupt(str(error)) from error

    def _entry(self, name: str, item: dict[str, Any], base: int, file_bytes: int) -> Entry:
        dtype, shape, (start, stop) = item["dtype"], item["shape"], item["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)) or not start <= stop <= file_bytes - base:
            raise ValueError(f"tensor {name} spans bytes [{start}, {stop}) of {file_bytes - base}")
        if dtype in DTYPES and math.prod(shape) * DTYPES[dtype].itemsize != stop - start:
            raise ValueError(f"tensor {name} is {dtype} {shape} in {stop - start} bytes")
        return Entry(name, str(dtype), tuple(shape), base + start, stop - start)

    def _short(self, end: int) -> ConfigError:
        return ConfigError(f"{self.path} ends at byte {end}; its header promises more", path=str(self.path))

    def _corrupt(self, what: str) -> ConfigError:
        return ConfigError(f"{self.path} is no sound safetensors file: {what}", path=str(self.path))
