"""What we read and write agrees, byte for byte, with vectors that the msgpack package made."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bloombee.wire import messages
from bloombee.wire.envelope import decode_envelope, encode_envelope
from bloombee.wire.schema import decode_message, encode_message

ROOT = Path(__file__).resolve().parents[2]
VECTORS: list[dict[str, Any]] = json.loads((ROOT / "tests" / "golden" / "wire.json").read_text())


def plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, msgspec.Struct):
        tag = value.__struct_config__.tag
        fields = [plain(getattr(value, name)) for name in value.__struct_fields__]
        return fields if tag is None or isinstance(value, messages.Message) else [tag, *fields]
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"tag{v['tag']}")
def test_message_both_ways(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["message"])
    message = decode_message(data)
    assert type(message).__struct_config__.tag == vector["tag"]
    assert plain(message) == vector["fields"]
    assert encode_message(message) == data


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"tag{v['tag']}")
def test_envelope_both_ways(vector: dict[str, Any]) -> None:
    header = bytes.fromhex(vector["header"])
    assert header[:2] == b"\x94\x01"
    envelope = decode_envelope([header, *map(bytes, vector["payloads"])])
    assert envelope.swarm == 0xFEDCBA9876543210
    assert envelope.message == decode_message(bytes.fromhex(vector["message"]))
    assert [tensor.encoded_bytes for tensor in envelope.tensors] == vector["payloads"]
    assert encode_envelope(envelope.swarm, envelope.message, envelope.tensors) == header


def test_every_message_has_a_vector() -> None:
    tags = {kind.__struct_config__.tag for kind in messages.Message.__subclasses__()}
    assert tags == {vector["tag"] for vector in VECTORS}


def test_tags_are_unique() -> None:
    tags = [kind.__struct_config__.tag for kind in messages.Message.__subclasses__()]
    assert len(tags) == len(set(tags))


def test_every_message_is_in_the_specification() -> None:
    page = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\w+) \|.*\| (?:control|bulk|both|where)", page, re.MULTILINE)
    kinds = [(str(kind.__struct_config__.tag), kind.__name__) for kind in messages.Message.__subclasses__()]
    assert sorted(rows) == sorted(kinds)


def test_the_file_is_what_the_tool_makes() -> None:
    spec = importlib.util.spec_from_file_location("make_golden_wire", ROOT / "tools" / "make_golden_wire.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.FILE.read_text() == tool.text()
