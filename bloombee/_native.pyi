"""Native core. Every function releases the GIL, allocates nothing that lasts, and gives the same result at
every instruction-set level. Errors are ValueError (sizes, ranges), TypeError and BufferError (not a buffer)."""

from typing import Literal

from typing_extensions import Buffer

WritableBuffer = Buffer
"""A buffer that is not read-only; contiguous, as all buffers here."""

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
