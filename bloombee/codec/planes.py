"""Byte planes: all low bytes of an array of elements, then all second bytes, and so on.

The bytes of one plane resemble each other (the exponents of activations above all), so that an entropy
coder finds more in a plane than in the elements. The work is done by ``bloombee._native``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bloombee import _native
from bloombee.errors import CodecError

if TYPE_CHECKING:
    from bloombee._native import Buffer, WritableBuffer


def split_planes(data: Buffer, out: WritableBuffer, *, element_bytes: int) -> None:
    """Take elements apart into byte planes.

    Args:
        data: [n, element_bytes] bytes, contiguous; any alignment.
        out: [element_bytes, n] bytes, contiguous, overwritten; plane 0 is the least significant byte.
        element_bytes: 1, 2 or 4.

    Raises:
        CodecError: the two sizes disagree or are no multiple of ``element_bytes``, the buffers overlap, or
            ``element_bytes`` is none of these.
        BufferError, TypeError: not a contiguous buffer, or ``out`` is read-only.

    Time: one read of ``data`` and one write of ``out``. No allocation; the GIL is released.
    Source: csrc/codec/planes.h; inverse of :func:`join_planes`.
    """
    _checked(_native.split_planes, data, out, element_bytes)


def join_planes(planes: Buffer, out: WritableBuffer, *, element_bytes: int) -> None:
    """Interleave byte planes back into elements.

    Args:
        planes: [element_bytes, n] bytes, contiguous; plane 0 is the least significant byte.
        out: [n, element_bytes] bytes, contiguous; overwritten.
        element_bytes: 1, 2 or 4.

    Raises:
        CodecError: as :func:`split_planes`.
        BufferError, TypeError: likewise.

    Time: one read of ``planes`` and one write of ``out``. No allocation; the GIL is released.
    Source: csrc/codec/planes.h; inverse of :func:`split_planes`.
    """
    _checked(_native.join_planes, planes, out, element_bytes)


def _checked(
    function: Callable[[Buffer, WritableBuffer, int], None], source: Buffer, out: WritableBuffer, element_bytes: int
) -> None:
    try:
        function(source, out, element_bytes)
    except ValueError as error:
        raise CodecError(str(error), element_bytes=element_bytes) from None
