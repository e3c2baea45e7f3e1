"""Makes tests/golden/wire.json: one vector of every message, written down as plain arrays and packed by the
``msgpack`` package, which knows nothing of this project: what ``bloombee.wire`` reads and writes must agree with it.

    python tools/make_golden_wire.py            # rewrites the file
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack

FILE = Path(__file__).resolve().parents[1] / "tests" / "golden" / "wire.json"
SWARM = 0xFEDC_BA98_7654_3210
KEY = bytes(range(32))
LINK = bytes(range(100, 116))
PEER = [7, "tcp://10.0.0.7:4100", KEY, LINK]
SAMPLING = [0.75, 40, 0.95, 0.05, 1.1, -0.5, 0.25, 2**64 - 1, 3]
RULES = [
    [[[5, 6], -1.5], [[9], 2.0]], [[7], [8, 9]], 3, 12, 4, 1, [2], True, [10, 1.5], [3, 4], [70000], 0.5, 0.9, 0.25, 0.0,
    [0.25, 2.0, 15485863, False, 1],
]  # fmt: skip
TIMES = [0.001, 2e-4, 1e-4, 0.0]
ROWS = b"\x01\x00\x00\x00\xff\xff\x00\x00\x00\x00\x01\x00"

MESSAGES: list[list[Any]] = [
    [1, 2, b"0123456789abcdef", "box", "bloombee 0.1.0", "tcp://10.0.0.7:4100", "cuda:0", 24 * 2**30, [0, 1]],
    [2, 7, SWARM, 0.5, 3.0],
    [3, "QueueFull", {"message": "too many", "limit": 1024, "share": 0.5, "hard": True, "who": None}],
    [4, 2, SWARM, 7, "bloombee 0.1.0", [0, 1], 123456789],
    [5, 2, [0], 123456789, 2**40, 2**40 + 5],
    [6, 300],
    [7, "bye"],
    [8, 70000, 65536],
    [9, 70001],
    [10, 70002, b"padding"],
    [16, 0, 4, 8, 12, "demo", KEY, [b"", LINK, b"", b""], "bfloat16", [[0, 1000], [512, 70]], 16, 2, None],
    [16, 0, 28, 32, 32, "m", KEY, [], "float16", [[0, 9]], 16, 0, RULES],
    [17, 0, 2**33, 2**34],
    [18, 0, 2**33, 2**32],
    [19, 0, 1, "DeviceError", {"message": "out of memory"}],
    [20, 0, 1],
    [21, 0, 1, 9],
    [22, 0, 1, 9, [100, 3200, 2**40, 102400, 2**41, 2**24], [4, 2048, 2**41, 2**22, 2**42, 2**20], 998, 77, 2**33, 2**32],
    [23, 0, 1, 2, "off: asked for", 0.0625, 0.001, None, 2.5e6, 2.25e6, 1e5, None, 70000, 2**40, 12.5, 3],
    [24, 0, 1, "cpu x86_64", 2, TIMES, [5e-4, 1e-4, 5e-5, 1e-8], TIMES, 0.05, 0.25, 2**30, 4096, 2**34, None, 2.5e9],
    [25, 0, 3, 2, 1, 3, 2, 512, PEER, [0, "", KEY, LINK], True],
    [26, 0, 3],
    [32, 0, 1, 5, 9, 0, [[70000, 2, 300, ROWS, 1, None, None], [1, 0, 0, ROWS, 0, [5, SAMPLING, 64, [2, 7]], None]]],
    [32, 0, 1, 6, 10, 1, []],
    [32, 0, 1, 7, 11, 0, [[70000, 2, 300, ROWS, 3, None, [0, 1, 1]]]],
    [33, 0, 1, 5, 9, [[70000, 2, 303, 42, -0.5, [[42, -0.5], [7, -1.25]]], [1, 0, 3, 9, None, []]]],
    [34, 0, 1, 1, 5, [7, 9], 12, 1500],
    [35, 0, 1, 70000, 2, 128],
    [36, 0, 1, [3, 70000], 3],
    [37, 0, 1, [3, 70000], 3, 998],
    [38, 0, 2, [[70000, 2, 303], [1, 0, 2**32 - 1]]],
    [39, 0, 2],
    [40, 0, 1, b"a table"],
    [41, 0, 1, b"\x01\x02\x03\x04"],
    [42, 0, 1, 1, 77, b"\x01\x02\x03\x04"],
    [43, 0, 2, [[70000, 2, 5]], False],
]
TENSORS: list[list[Any]] = [["bfloat16", [6, 2], 0, 24, 24, 0xDEADBEEF]]


def vectors() -> list[dict[str, Any]]:
    """[{"message": hex, "header": hex, "fields": the array with bytes as {"hex": ...}}]; the first Forward's header
    has a tensor."""
    first_forward = next(message for message in MESSAGES if message[0] == 32)
    return [
        {
            "tag": message[0],
            "message": _pack(message).hex(),
            "header": _pack([1, SWARM, message, TENSORS if message is first_forward else []]).hex(),
            "fields": _plain(message[1:]),
        }
        for message in MESSAGES
    ]


def _pack(value: Any) -> bytes:
    data = msgpack.packb(value, use_bin_type=True)
    assert isinstance(data, bytes)
    return data


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def text() -> str:
    """The file's content."""
    return "[\n" + ",\n".join(json.dumps(vector) for vector in vectors()) + "\n]\n"


if __name__ == "__main__":
    FILE.write_text(text())
    print(f"{FILE}: {len(MESSAGES)} vectors")
