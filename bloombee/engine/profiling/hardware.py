"""What a machine offers beside its device's arithmetic: memory by tier, bandwidths, the codec, and what one thread gets done.

Each is measured within a fraction of a second. A figure that cannot be had honestly is None: a disk that only answers out of the
system's cache says nothing of the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from bloombee import machine
from bloombee.codec import api as codec
from bloombee.codec.table import DTYPE_CODES, default_table
from bloombee.engine.buffers import TORCH_DTYPES, to_buffer
from bloombee.engine.checkpoint import Checkpoint
from bloombee.errors import BloomBeeError
from bloombee.plan.profile import Hardware
from bloombee.types import Dtype
from bloombee.wire.messages import Forward, Item
from bloombee.wire.schema import decode_message, encode_message

REPEATS = 7
COPIED_BYTES = 64 << 20
READ_BYTES, READ_S = 256 << 20, 0.4
"""Most that is read of a disk."""
WRITTEN_BYTES = 64 << 20
"""Of a file that is written to see how fast it is read."""
CHUNK_BYTES = 8 << 20
LEAST_READ_BYTES = 4 << 20
"""A file of less says nothing of its disk."""
FRAME_ROWS = 16
FRAMES = 200


def hardware(
    device: str, *, memory_bytes: int, log_bytes: int = 0, log_disk_bytes: int = 0, log_dir: str | None = None
) -> Hardware:
    """What is to be known without measuring.

    Args:
        device: of torch. memory_bytes: of it, as the worker offers it.
        log_bytes, log_disk_bytes, log_dir: that the worker keeps for its log, and where.
    """
    host_bytes = 0
    if device.startswith("cuda"):
        host_bytes = max(0, int(machine.MEMORY_SHARE * machine.free_memory().amount) - log_bytes)
    free_bytes = 0
    with contextlib.suppress(OSError):
        free_bytes = shutil.disk_usage(log_dir or tempfile.gettempdir()).free
    return Hardware(
        memory_bytes=memory_bytes,
        host_bytes=host_bytes,
        disk_bytes=max(0, free_bytes - log_disk_bytes),
        cores=machine.cores().amount,
        machine=_machine(),
    )


def measure_hardware(known: Hardware, device: str, checkpoint: Checkpoint, alive: Callable[[], None]) -> Hardware:
    """With what has to be measured.

    Args:
        alive: called in between; it may raise to give up.
    """
    alive()
    to_device, from_device = transfer_speeds(device)
    alive()
    disk = disk_speed(checkpoint)
    alive()
    return replace(
        known,
        to_device_bytes_per_s=to_device,
        from_device_bytes_per_s=from_device,
        disk_bytes_per_s=disk,
        frames_per_s=frames_per_s(),
    )


def _machine() -> str:
    """The same for all processes of a machine that has not been started anew, whatever container they are in; else empty."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        return hashlib.blake2b(boot, digest_size=8).hexdigest()
    return ""


def codec_speeds(hidden: int, dtype: Dtype) -> tuple[float | None, float | None]:
    """Raw bytes per second of encoding and decoding 64 rows of normal noise, which is near what activations are."""
    if dtype not in DTYPE_CODES:
        return None, None
    rows = torch.randn(64, hidden).to(TORCH_DTYPES[dtype])
    data, shape = bytes(to_buffer(rows).data), (64, hidden)
    coded, plain = bytearray(codec.bound(64 * hidden, dtype)), bytearray(len(data))
    try:
        table = default_table(dtype, hidden)
        size = codec.encode(data, shape=shape, dtype=dtype, table=table, out=coded)
        encode_s = _quickest(lambda: codec.encode(data, shape=shape, dtype=dtype, table=table, out=coded))
        message = memoryview(coded)[:size]
        decode_s = _quickest(lambda: codec.decode(message, plain, shape=shape, dtype=dtype))
    except (BloomBeeError, ValueError, TypeError):
        return None, None
    return len(data) / encode_s, len(data) / decode_s


def _quickest(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    best = math.inf
    for _ in range(REPEATS):
        begin = clock()
        call()
        best = min(best, clock() - begin)
    return best


def frames_per_s() -> float:
    """Decode frames of 16 sequences that one thread writes and reads: the kind of work that hops, schedulers and heads are made
    of, where neither arithmetic nor memory counts. By the thread's own clock, so that what else runs here does not show."""
    token = (1).to_bytes(4, "little")
    items = tuple(Item(sequence, 0, 1, 512, token, 1, None, None) for sequence in range(FRAME_ROWS))
    frame = Forward(1, 1, 1, 1, 0, 0, items)

    def work() -> None:
        for _ in range(FRAMES):
            decode_message(encode_message(frame))

    return FRAMES / _quickest(work, time.thread_time)


def transfer_speeds(device: str) -> tuple[float | None, float | None]:
    """Bytes per second into a device's memory from its machine's and back; None for the CPU, whose memory is the machine's."""
    if not device.startswith("cuda"):
        return None, None
    host = torch.empty(COPIED_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device)

    def copy(target: torch.Tensor, source: torch.Tensor) -> float:
        def work() -> None:
            target.copy_(source, non_blocking=True)
            torch.cuda.synchronize(device)

        work()
        return COPIED_BYTES / _quickest(work)

    return copy(there, host), copy(host, there)


def disk_speed(checkpoint: Checkpoint) -> float | None:
    """Bytes per second of reading where the model's weights are; None if none are here yet, or only out of the system's cache."""
    if checkpoint.directory is None:
        return None
    files = [path for path in checkpoint.directory.glob("*.safetensors") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size, default=None)
    return None if largest is None else read_speed(largest)


def directory_speed(directory: Path) -> float | None:
    """Bytes per second of reading files of ``directory`` past the system's cache, by one that is written for that; None if it
    cannot be written, or the system has no such way."""
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory) as file:
            block = os.urandom(CHUNK_BYTES)
            for _ in range(WRITTEN_BYTES // CHUNK_BYTES):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return read_speed(Path(file.name))
    return None


def read_speed(path: Path) -> float | None:
    """Bytes per second of reading a file past the system's cache; None where the system has no such way."""
    direct = getattr(os, "O_DIRECT", 0)
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        if not direct or path.stat().st_size < LEAST_READ_BYTES:
            return None
        file = os.open(path, os.O_RDONLY | direct)
        stack.callback(os.close, file)
        buffer = stack.enter_context(mmap.mmap(-1, CHUNK_BYTES))  # aligned, as such reads have to be
        begin, num_bytes = time.perf_counter(), 0
        while num_bytes < READ_BYTES and time.perf_counter() - begin < READ_S:
            count = os.preadv(file, [buffer], num_bytes)
            num_bytes += count
            if count < CHUNK_BYTES:
                break
        return num_bytes / (time.perf_counter() - begin)
    return None
