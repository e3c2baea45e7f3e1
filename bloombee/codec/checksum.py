"""The checksum of tensor frames: CRC-32C.

It guards against faults of memory, disks and our own code; against an attacker there is the link's
encryption. The work is done by ``bloombee._native``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bloombee import _native
from bloombee.errors import CorruptPayload

if TYPE_CHECKING:
    from bloombee._native import Buffer


def crc32c(data: Buffer, initial: int = 0) -> int:
    """CRC-32C (Castagnoli) of ``data``.

    Args:
        data: contiguous buffer, any alignment.
        initial: checksum of the bytes before these; ``crc32c(b, crc32c(a)) == crc32c(a + b)``.

    Returns:
        An unsigned 32-bit integer; 0 for no bytes.

    Time: about 20 GB/s with SSE 4.2, else about 2. The GIL is released.
    Source: RFC 3720 appendix B.4 (test vectors).
    """
    return _native.crc32c(data, initial)


def check_crc32c(data: Buffer, expected: int) -> None:
    """Compare the checksum of ``data`` with what its sender wrote.

    Raises:
        CorruptPayload: they differ; fields ``expected`` and ``actual``.
    """
    actual = _native.crc32c(data, 0)
    if actual != expected:
        raise CorruptPayload(
            f"checksum of a payload is {actual:#010x}; its sender computed {expected:#010x}",
            expected=expected,
            actual=actual,
        )
