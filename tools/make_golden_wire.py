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
PEER = [7, "tcp://10.0.0.7:4100", KEY, LINK, True, None]
DIALLING = [3, "", KEY, LINK, False, 9]
SAMPLING = [0.75, 40, 0.95, 0.05, 1.1, -0.5, 0.25, 2**64 - 1, 3]
RULES = [
    [[[5, 6], -1.5], [[9], 2.0]], [[7], [8, 9]], 3, 12, 4, 1, [2], True, [10, 1.5], [3, 4], [70000], 0.5, 0.9, 0.25, 0.0,
    [0.25, 2.0, 15485863, False, 1],
]  # fmt: skip
TIMES = [0.001, 2e-4, 1e-4, 0.0, None]
OPENING = [1, 5, SAMPLING, 64, [2, 7], [], None, None]
GRAMMAR = [1, 300, SAMPLING, 64, [], [[70000, -2.5], [3, 100.0]], ["json_schema", '{"type": "object"}'], [KEY, 300]]
FORK = [2, 70000, 300, OPENING]
ROWS = b"\x01\x00\x00\x00\xff\xff\x00\x00\x00\x00\x01\x00"

MESSAGES: list[list[Any]] = [
    [1, 2, b"0123456789abcdef", "box", "bloombee 0.1.0", "tcp://10.0.0.7:4100", "cuda:0", 24 * 2**30, [0, 1]],
    [2, 7, SWARM, 0.5, 3.0, True],
    [3, "QueueFull", {"message": "too many", "limit": 1024, "share": 0.5, "hard": True, "who": None}],
    [4, 2, SWARM, 7, "bloombee 0.1.0", [0, 1], 123456789],
    [5, 2, [0], 123456789, 2**40, 2**40 + 5],
    [6, 300],
    [7, "bye"],
    [8, 70000, 65536],
    [9, 70001, 2**41],
    [10, 70002, b"padding"],
    [11, "interrupted"],
    [12, 3, "the machine is needed"],
    [13, 3],
    [14, PEER],
    [14, DIALLING],
    [15, LINK, "", {}],
    [15, LINK, "LinkDown", {"message": "nobody listens there", "peer": 7}],
    [16, 5, 0, 4, 8, 12, "demo", KEY, [b"", LINK, b"", b""], "bfloat16", [[0, 1000], [512, 70]], 16, 2, None, [], []],
    [16, 6, 0, 28, 32, 32, "m", KEY, [], "float16", [[0, 9]], 16, 0, RULES, [0, 1, 1, 2], [2**34, 2**35, 2**40]],
    [17, 0, 2**33, 2**34],
    [18, 5, 0, [2**33], [2**32]],
    [19, 7, 0],
    [20, 7, 0],
    [21, 0, 3, 2, 1, 3, 2, 512, DIALLING, PEER, None, [], None, True, 5, False],
    [21, 0, 3, 2, 1, 2, 2, 512, DIALLING, None, PEER, [PEER, DIALLING], None, False, 70000, False],
    [21, 0, 4, 1, 1, 3, 2, 512, None, PEER, None, [], None, False, 5, True],
    [
        21,
        0,
        3,
        2,
        0,
        3,
        2,
        512,
        None,
        PEER,
        None,
        [],
        [2, [[0, 1000], [512, 70]], 16, 600.0, True, [PEER, DIALLING], True],
        False,
        1,
        False,
    ],
    [22, 0, 3],
    [23, 0, 1],
    [24, 0, 1],
    [25, 0, 1, "DeviceError", {"message": "out of memory"}],
    [26, 70000, 0, 1],
    [27, 70000, 0, 1, [100, 3200, 2**40, 102400, 2**41, 2**24], [4, 2048, 2**41, 2**22, 2**42, 2**20], 998, 77, 2**33, 2**32],
    [28, "demo", KEY, "bfloat16"],
    [
        29,
        KEY,
        "bfloat16",
        "cpu x86_64",
        2,
        TIMES,
        [5e-4, 1e-4, 5e-5, 1e-8, 1e-7],
        TIMES,
        0.05,
        0.25,
        2**30,
        4096,
        None,
        2.5e9,
        [],
        [[2**34, 0, 0], None, None, None, None, 2, ""],
    ],
    [
        29,
        KEY,
        "float16",
        "a GPU",
        8,
        TIMES,
        TIMES,
        TIMES,
        0.0,
        0.0,
        2**30,
        4096,
        1.5e9,
        2.5e9,
        [[0, TIMES, 2**30, 4096], [5, TIMES, 2**31, 8192]],
        [[2**34, 2**35, 2**40], 2.5e10, 2.25e10, 2e9, 2.5e4, 16, "0123abcd"],
    ],
    [30, 2, "off: asked for", 0.0625, 0.001, None, 2.5e6, 2.25e6, 1e5, None, 70000, 2**40, 12.5, 3, 0],
    [31, 70000, 2, True],
    [32, 0, 1, 5, 9, 0, 0, [[70000, 2, 1, 300, ROWS, 1, None, None], [1, 0, 0, 0, ROWS, 0, OPENING, None]]],
    [32, 0, 1, 6, 10, 1, 4, []],
    [32, 0, 1, 7, 11, 0, 1, [[70000, 2, 2, 300, ROWS, 2, None, [5, [0, 4, 5], b"\x05"]]]],
    [32, 0, 1, 8, 12, 1, 2, [[70001, 0, 0, 300, ROWS, 1, FORK, None], [70002, 0, 3, 300, ROWS, 1, GRAMMAR, None]]],
    [33, 0, 1, 5, 9, [[70000, 2, 303, 42, -0.5, [[42, -0.5], [7, -1.25]]], [1, 0, 3, 9, None, []]], None],
    [33, 0, 1, 6, 9, [[70000, 2, 303, 42, None, []], [1, 0, 3, 9, None, []]], [70000, 0]],
    [34, 0, 1, 1, 5, [7, 9], 3, 12, 1500],
    [35, 0, 1, 70000, 2, 128],
    [36, 0, 2, [[70000, 2, 303], [1, 0, 2**32 - 1]]],
    [37, 0, 2],
    [38, 0, 2, [[70000, 2, 5]], False],
    [39, 0, 1, [[70000, 3, 302, [5, 6, 9]], [1, 1, 0, []]]],
    [40, 0, 1, [[70000, 3], [1, 1]], 998],
    [41, 0, 1, [3, 70000], 3],
    [42, 0, 1, [3, 70000], 3, 998],
    [43, 0, 1, b"a table"],
    [44, 0, 1, b"\x01\x02\x03\x04"],
    [45, 0, 1, 1, 77, b"\x01\x02\x03\x04"],
    [46, 0, 1, 70000, 2, [KEY, 300]],
    [47, 0, 1, 70000, 256],
    [48, 0, 1, 70000, 2, 4, 6, 256, 6],
    [49, 0, 1, 70000, 2, 4, 6, 262],
    [50, 0, 1, 70000, 2, 303, ROWS, [0, 1, 1], [-0.25, -1.5, -1.75]],
    [51, 0, 1, 70000, [[1, 0, 0, ROWS, OPENING], [70000, 2, 300, ROWS, None]], [4, 9], 3],
    [52, 0, 1, 70001],
    [
        53,
        0,
        2,
        70000,
        [[70000, 9, 5, ROWS, OPENING, "somebody", -1, 2.5], [70001, 5, 0, ROWS, OPENING, "", 0, None]],
        [3, 4],
        [5],
        None,
    ],
    [53, 0, 2, 70001, [], [], [], [8, [[0, 256, 64, None], [4096, 128, 32, 512.0]], 24, True]],
    [
        54,
        0,
        2,
        5,
        [[[70000, 2, 303, 42, -0.5, [[42, -0.5]]], None, 5, True, 0], [[1, 0, 3, 9, None, []], "stop", 0, False, 70000]],
        [[4, "LinkDown", {"x": 1}]],
    ],
    [55, 0, 2, 24, 3, 0.0625, 2, 2**40, 0.5],
    [56, 0, 4, 70000],
    [57, 0, 1, ROWS, 300],
]
HIDDEN: list[list[Any]] = [["hidden", "bfloat16", [6, 2], 0, 24, 24, 0xDEADBEEF]]
KV: list[list[Any]] = [["keys", "float16", [6, 2, 2], 0, 48, 48, 0xDEADBEEF], ["values", "float16", [6, 1], 1, 12, 9, 1]]


def vectors() -> list[dict[str, Any]]:
    """[{"message": hex, "header": hex, "payloads": their lengths, "fields": the array with bytes as {"hex": ...}}]; the header of
    the first Forward has a tensor, that of KvPages two."""
    first_forward = next(message for message in MESSAGES if message[0] == 32)
    made = []
    for message in MESSAGES:
        tensors = HIDDEN if message is first_forward else KV if message[0] == 48 else []
        made.append(
            {
                "tag": message[0],
                "message": _pack(message).hex(),
                "header": _pack([1, SWARM, message, tensors]).hex(),
                "payloads": [tensor[5] for tensor in tensors],
                "fields": _plain(message[1:]),
            }
        )
    return made


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
