"""Native core. Every function releases the GIL, allocates nothing that lasts, and gives the same result at
every instruction-set level. Errors are ValueError (sizes, ranges), TypeError and BufferError (not a buffer)."""

from typing import Any, Literal, TypeAlias

import typing_extensions
from numpy.typing import NDArray

Buffer: TypeAlias = typing_extensions.Buffer | NDArray[Any]
"""Anything with the buffer protocol, contiguous (NumPy's stubs say it of their arrays only from Python 3.12 on)."""
WritableBuffer: TypeAlias = Buffer
"""A buffer that is not read-only."""

Isa = Literal["scalar", "avx2", "avx512"]

# -- csrc/core/isa.h

def available_isas() -> list[Isa]:
    """Instruction-set levels this machine runs, "scalar" first and the best last."""

def current_isa() -> Isa:
    """The level in use: the best, unless :func:`set_isa` said otherwise."""

def set_isa(name: Isa) -> Isa:
    """Use level ``name`` from now on in every thread; returns the level before. For tests and benchmarks."""

# -- csrc/codec/planes_cpu.h

def split_planes(data: Buffer, out: WritableBuffer, element_bytes: int) -> None:
    """[n, element_bytes] bytes -> [element_bytes, n] bytes; see bloombee.codec.planes."""

def join_planes(planes: Buffer, out: WritableBuffer, element_bytes: int) -> None:
    """[element_bytes, n] bytes -> [n, element_bytes] bytes; see bloombee.codec.planes."""

# -- csrc/codec/checksum.h

def crc32c(data: Buffer, initial: int = 0) -> int:
    """CRC-32C of ``data``, continuing from ``initial``; see bloombee.codec.checksum."""

# -- csrc/codec/rans.h

class CodecTable:
    """A table in the form that the kernels use; immutable. See bloombee.codec.table."""

    def __init__(self, blob: Buffer, digest: Buffer) -> None: ...
    def device_image(self) -> bytes:
        """The table as the CUDA kernels read it; copy it to the device at an address that is a multiple of 64."""

def codec_encode(
    data: Buffer, rows: int, channels: int, dtype: int, table: CodecTable | None, out: WritableBuffer, unit_log2: int = 14
) -> int:
    """Encodes into ``out``, returns how many bytes; see bloombee.codec.api. ``data`` need not be contiguous."""

def codec_decode(
    message: Buffer, out: WritableBuffer, rows: int, channels: int, dtype: int, table: CodecTable | None
) -> str | None:
    """Decodes into ``out``; None, or what is wrong with the message. The rows of ``out`` may lie apart."""

def codec_seal(message: WritableBuffer, table: CodecTable | None) -> None:
    """Write the checksum of a message that a device made; None for a raw message."""

def codec_check(message: Buffer, table: CodecTable | None) -> bool:
    """Whether the checksum of a message is right; before it goes to a device, which does not look at it."""

def codec_encode_by_lanes(
    data: Buffer,
    rows: int,
    channels: int,
    dtype: int,
    table: CodecTable,
    unit_log2: int = 14,
    plane0: bool = True,
    plane1: bool = True,
) -> bytes | None:
    """The code of the CUDA kernels on the host: the coded message, None where it would be raw. For tests."""

def codec_decode_by_lanes(message: Buffer, out: WritableBuffer, rows: int, channels: int, dtype: int, table: CodecTable) -> bool:
    """The same for decoding; False: corrupt. The checksum is not looked at."""

def codec_isa() -> Isa:
    """The kernels in use; below :func:`current_isa` where AVX-512 comes without VBMI."""

# -- csrc/sampler/sample.h

def sample_rows(
    logits: Buffer,
    out: WritableBuffer,
    *,
    temperature: Buffer,
    top_k: Buffer,
    top_p: Buffer,
    min_p: Buffer,
    seed: Buffer,
    position: Buffer,
    masks: Buffer | None = None,
) -> None:
    """One token per row; see bloombee.engine.sampler and the oracle bloombee.engine.sampler_reference.

    logits [b, v] float32, 1 <= v <= 2^23; out [b] uint32; temperature [b] float64 in [0, 1e18], 0: greedy; top_k [b]
    uint32, 0: all; top_p [b] float64 in (0, 1], 1: all; min_p [b] float64 in [0, 1], 0: all; seed, position [b] uint64; masks
    [b, ceil(v / 64)] uint64: bit i % 64 of word i // 64 is whether token i may be picked.
    """

def log_softmax(logits: Buffer, ids: Buffer, out: WritableBuffer) -> None:
    """log softmax of logits [v] float32 at ids [m] uint32 into out [m] float64; -inf where a logit is NaN or -inf."""

def top_tokens(logits: Buffer, out: WritableBuffer) -> int:
    """The first n tokens of logits [v] float32 by (logit descending, id ascending) into out [n] uint32; returns how
    many there were (NaN and -inf are left out)."""

# -- csrc/sampler/noise.h

def gumbel_noise(ids: Buffer, out: WritableBuffer, *, seed: int, position: int) -> None:
    """Noise of ids [n] uint32 into out [n] float64; see bloombee.engine.noise. For tests: the kernels make their own."""

def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """One call of Philox4x32-10. For tests."""

# -- csrc/attention/lanes.h

def paged_attend(**task: int | float) -> None:
    """Attention by the code of the CUDA kernels, lane by lane, on addresses of the host; see bloombee.engine.paged. For tests: it
    believes what it is told, and is slow. ValueError: no kernel is made for the dtype and the widths."""

def paged_write(**task: int) -> None:
    """The storing of keys and values, likewise."""

# -- csrc/plan/solver.h

class PlanSolver:
    """A search for plans, with a budget of so many seconds and steps in all; see bloombee.plan.solve.

    A solution is a dict: found, point, value, bound, proven, and the chain as lists of workers, layers, streamed (numbers of
    fractions) and codec (numbers of ratios, one fewer).
    """

    def __init__(self, instance: dict[str, Any], seconds: float, steps: int) -> None: ...
    def most_tokens(self, step_limit: float, allowed: Buffer, width: int, share: float = 1.0) -> dict[str, Any]:
        """Least step / gain with steps <= step_limit, of chains of workers w with allowed[w] (uint8, [workers])."""

    def least_alone(self, value: float, allowed: Buffer, width: int, share: float = 1.0) -> dict[str, Any]:
        """Least loop at b = 1 of chains whose step / gain is at most ``value`` at some point."""

    def value_of(self, point: int, workers: list[int], layers: list[int], streamed: list[int], codec: list[int]) -> float:
        """Step / gain of a chain. ValueError: none of this instance."""

    def room(self, point: int) -> list[int]:
        """Layers that each worker could hold, alone."""

    def short_bytes(self, point: int, worker: int, start: int, stop: int) -> float:
        """Of memory for layers [start, stop) on a worker, even where all is streamed that may be; <= 0: it fits."""

    def layer_rates(self) -> list[float]:
        """Most layers times tokens per second of each worker, at any point."""

    @property
    def steps(self) -> int:
        """Taken so far."""

    @property
    def left(self) -> float:
        """The part of the budget that is left, of time or of steps."""

# -- csrc/fused/lanes.h

def fused_norm_by_lanes(
    shape: tuple[int, int, int, int, int, int], epsilon: float, dtype: int, x: int, weight: int, out: int
) -> None:
    """What the CUDA kernel does, on the host; see bloombee.engine.fused. For tests; the caller answers for the addresses."""

def fused_gate_by_lanes(shape: tuple[int, int, int, int], dtype: int, gate: int, up: int, out: int) -> None: ...
def fused_rotary_by_lanes(
    shape: tuple[int, int, int, int, int, int, int], dtype: int, x: int, cosines: int, sines: int, out: int
) -> None: ...
