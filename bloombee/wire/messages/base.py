"""What messages are made of: their two base classes, and the ranges that fields may have."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from bloombee.types import Kind, Lane, Priority

PROTOCOL_VERSION = 2

MAX_HEADER_BYTES = 1 << 20
"""Largest header frame; checked before it is parsed."""
MAX_ROWS = 1 << 16
"""Most rows (new tokens) in one frame."""
MAX_ITEMS = 4096
"""Most sequences in one frame."""
MAX_RULE_TOKENS = 1 << 15
"""Most token ids in all of a checkpoint's rules together; so they fit a header however they are spread over its lists."""
MAX_HOLDINGS = 1 << 15
"""Most sequences in one Resume."""
MAX_PATH = 256
"""Most nodes of a path in one Commit."""
MAX_GRAMMAR_CHARS = 1 << 18
MAX_GRAMMAR_BYTES = 1 << 18
MAX_BIASES = 4096
MAX_LISTENERS = 8
MAX_KINDS = 64
"""Most kinds of layers that differ."""
REPLAY = 2**63 - 1
"""The microbatch of frames that are no microbatch of the scheduler's: rows that are said again."""
MARK = REPLAY - 1
"""The microbatch of a frame without rows that each stage passes on only once it has said all that its log has for the next."""
NO_TOKEN = 2**32 - 1
"""A pick that could not be made: no logit of the row was finite, or picking failed. It ends the sequence with DeviceError."""
NO_GRAMMAR = NO_TOKEN - 1
"""A pick that could not be made as the request's grammar asks for. It ends the sequence with GrammarFailed."""

U8 = Annotated[int, Meta(ge=0, le=2**8 - 1)]
U16 = Annotated[int, Meta(ge=0, le=2**16 - 1)]
U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
U63 = Annotated[int, Meta(ge=0, le=2**63 - 1)]
U64 = Annotated[int, Meta(ge=0)]
"""msgpack has no integer above 2**64 - 1, and msgspec takes no bound that exceeds an int64."""
Real = Annotated[float, Meta(ge=-1e18, le=1e18)]
Amount = Annotated[float, Meta(ge=0, le=1e18)]
Duration = Annotated[float, Meta(ge=0, le=3600)]
Rate = Annotated[float, Meta(ge=1, le=1e18)]
LaneNumber = Annotated[int, Meta(ge=0, le=int(max(Lane)))]
KindNumber = Annotated[int, Meta(ge=0, le=int(max(Kind)))]
PriorityNumber = Annotated[int, Meta(ge=0, le=int(max(Priority)))]
TierNumber = Annotated[int, Meta(ge=0, le=2)]
"""Of memory: 0 a device's, 1 its machine's, 2 its disk."""
Name = Annotated[str, Meta(max_length=256)]
Path = Annotated[str, Meta(max_length=4096)]
Text = Annotated[str, Meta(max_length=8192)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
LinkId = Annotated[bytes, Meta(min_length=16, max_length=16)]
"""Unguessable routing id of one link; lane n of it is the id + one byte n."""
ConfigDigest = Annotated[bytes, Meta(min_length=16, max_length=32)]
WEIGHT_DIGEST_BYTES = 8
"""Of each tensor of a checkpoint."""
WeightDigests = Annotated[bytes, Meta(max_length=WEIGHT_DIGEST_BYTES << 14)]
"""Digests of some tensors, one after the other."""
TokenIds = Annotated[tuple[U32, ...], Meta(max_length=MAX_RULE_TOKENS)]
PackedTokens = Annotated[bytes, Meta(min_length=4, max_length=4 * MAX_ROWS)]
"""[num_rows] little-endian uint32."""
TableKey = Annotated[bytes, Meta(min_length=4, max_length=4)]
PrefixKey = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""Of the first rows of a sequence, by their content: docs/wire.md section 14."""
Facts = Annotated[dict[Name, Text | int | float | bool | None], Meta(max_length=32)]


class Message(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of all messages. They hold no cycles, so Python's garbage collector is spared them."""


class Part(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of what messages are made of."""
