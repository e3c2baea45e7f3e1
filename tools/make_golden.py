"""Golden vectors: files under tests/golden that fix a format or a definition bit for bit.

Each is made by a program that shares nothing with what it checks. A change of a file here is a change of a
definition that other machines rely on.

Example: python -m tools.make_golden --check
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 in whole numbers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 1 << 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % (1 << 32), (k1 + 0xBB67AE85) % (1 << 32)
    return c0, c1, c2, c3


def fixed_log(x: float) -> float:
    """The sampler's logarithm: IEEE operations in the order of csrc/sampler/noise.h."""
    m, exponent = math.frexp(x)
    k = float(exponent)
    if m < float.fromhex("0x1.6a09e667f3bcdp-1"):
        m, k = m + m, k - 1.0
    s = (m - 1.0) / ((m - 1.0) + 2.0)
    z = s * s
    p = 1 / 21
    for divisor in (19, 17, 15, 13, 11, 9, 7, 5, 3):
        p = p * z + 1 / divisor
    t = s + s
    return k * float.fromhex("0x1.62e42fefp-1") + (t + (t * (z * p) + k * float.fromhex("0x1.473de6af278edp-34")))


def noise_rows() -> Iterator[dict[str, int | str]]:
    """Noise of a few tokens: edges of every field, then a spread."""
    edges = [(0, 0, 0), (0, 0, 1), (2**64 - 1, 2**64 - 1, 2**32 - 1), (1, 2**32, 2), (2**32, 1, 3), (2**63, 2**31 - 1, 2**17)]
    spread = [((i * 0x9E3779B97F4A7C15) % 2**64, i * i * 7919, (i * 2654435761) % 152000) for i in range(1, 200)]
    for seed, position, token in edges + spread:
        words = philox((token >> 1, 0, position % 2**32, position >> 32), (seed % 2**32, seed >> 32))
        low, high = words[2:] if token & 1 else words[:2]
        bits = low | high << 32
        u = (bits >> 12) * 2.0**-52 + 2.0**-53
        gumbel = -fixed_log(-fixed_log(u))
        yield {"seed": seed, "position": position, "token": token, "u": u.hex(), "gumbel": gumbel.hex()}


def noise() -> str:
    return "[\n" + ",\n".join(json.dumps(row) for row in noise_rows()) + "\n]\n"


MAKERS: dict[str, Callable[[], str]] = {"noise.json": noise}
"""File name under tests/golden -> its text."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(MAKERS)} (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    options = parser.parse_args()
    unknown = set(options.names) - set(MAKERS)
    if unknown:
        parser.error(f"no golden file is called {', '.join(sorted(unknown))}")
    stale = []
    for name in options.names or MAKERS:
        text, path = MAKERS[name](), GOLDEN / name
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if not options.check:
            path.write_text(text)
    print(f"{'differ' if options.check else 'written'}: {', '.join(stale) or 'none'}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
