"""The sampler's noise in NumPy: one float64 per (request seed, absolute position, token id).

This is the definition of csrc/sampler/noise.h said a second time, slowly, and the oracle of its tests; runs
use the native one. Only IEEE additions, multiplications and divisions are used, in the order written, so that
both give the same bits on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
F64 = NDArray[np.float64]

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10

LN2_HIGH = float.fromhex("0x1.62e42fefp-1")
LN2_LOW = float.fromhex("0x1.473de6af278edp-34")
SQRT_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")

_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox4x32(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[U64, U64, U64, U64]:
    """Philox4x32-10: four words of 32 random bits per counter, elementwise.

    Args:
        counter: four words, each a 32-bit integer or an array of them.
        key: two 32-bit integers.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    m0, m1 = (np.uint64(m) for m in PHILOX_MULTIPLIERS)
    for round_number in range(PHILOX_ROUNDS):
        k0, k1 = (np.uint64((k + round_number * w) & 0xFFFFFFFF) for k, w in zip(key, PHILOX_WEYL, strict=True))
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _LOW, (p0 >> _32) ^ c3 ^ k1, p0 & _LOW
    return c0, c1, c2, c3


def log(x: F64) -> F64:
    """Natural logarithm of positive normal float64, within 2 ulp, the same bits everywhere.

    x = 2^k m with m in [sqrt(1/2), sqrt(2)); log m = 2 (s + s^3/3 + s^5/5 + ...), s = (m - 1) / (m + 1).
    """
    m, exponent = np.frexp(x)
    small = m < SQRT_HALF
    m = np.where(small, m + m, m)
    k = np.where(small, exponent - 1.0, exponent + 0.0)
    f = m - 1.0
    s = f / (f + 2.0)
    z = s * s
    p: F64 = np.full_like(z, 1 / 21)
    for divisor in range(19, 1, -2):
        p = p * z + 1 / divisor
    t = s + s
    result: F64 = k * LN2_HIGH + (t + (t * (z * p) + k * LN2_LOW))
    return result


def uniform(seed: int, position: int, token_ids: NDArray[np.integer[Any]]) -> F64:
    """u in (0, 1) of each token id: 52 random bits and a half.

    Args:
        seed: of the request, unsigned 64-bit.
        position: absolute position that the new token takes, unsigned 64-bit.
        token_ids: [n] integers, 0 <= id < 2^32.

    Returns:
        [n] float64, multiples of 2^-53. Tokens 2i and 2i + 1 share the Philox call with counter (i, 0, position).
    """
    ids = np.asarray(token_ids, np.uint64)
    counter = (ids >> np.uint64(1), 0, position & 0xFFFFFFFF, position >> 32)
    r0, r1, r2, r3 = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    bits = np.where(ids & np.uint64(1), r2 | r3 << _32, r0 | r1 << _32)
    value: F64 = (bits >> np.uint64(12)).astype(np.float64) * 2.0**-52 + 2.0**-53
    return value


def gumbel(seed: int, position: int, token_ids: NDArray[np.integer[Any]]) -> F64:
    """Gumbel noise -log(-log(u)) of each token id, in [-3.61, 36.74]; arguments as :func:`uniform`."""
    return -log(-log(uniform(seed, position, token_ids)))
