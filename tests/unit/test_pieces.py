"""Frames put together from pieces: whole, in order, and no lie believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transport_kit import SWARM, forward

from bloombee.errors import RemoteProtocolError
from bloombee.links.window import MAX_PIECE_BYTES
from bloombee.transport.pieces import Assembly
from bloombee.wire.envelope import Envelope


def beginning(frame: int, num_bytes: int) -> Envelope:
    message, tensors = forward(frame, num_bytes)
    return Envelope(SWARM, message, tensors)


def strict() -> Assembly:
    return Assembly(lambda: False)


def refused(assembly: Assembly, number: int, offset: int, piece: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        assembly.add(number, offset, piece)
    return str(caught.value.fields["path"])


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.integers(1, 40)), min_size=1, max_size=6), st.integers(0, 2**40)
)
def test_any_cut_gives_the_frames_back(frames: list[tuple[bytes, int]], first: int) -> None:
    assembly = strict()
    number = first
    for frame, (payload, cut) in enumerate(frames):
        assembly.begin(beginning(frame, len(payload)))
        whole = None
        for start in range(0, len(payload), cut):
            assert whole is None
            whole = assembly.add(number, start, memoryview(payload)[start : start + cut])
            number += 1
            assert assembly.upto == number
        assert whole is not None
        envelope, buffer = whole
        assert envelope.message.frame == frame  # type: ignore[union-attr]
        assert (bytes(buffer), len(buffer)) == (payload, len(payload))


@given(st.data())
def test_a_piece_lost_doubled_or_moved_is_refused(data: st.DataObject) -> None:
    cut = [bytes([n]) * 10 for n in range(data.draw(st.integers(3, 8)))]
    order = list(range(len(cut)))
    kind = data.draw(st.sampled_from(["lost", "doubled", "moved"]))
    where = data.draw(st.integers(1, len(cut) - 2))
    if kind == "lost":
        del order[where]
    elif kind == "doubled":
        order.insert(where, order[where])
    else:
        order[where], order[where + 1] = order[where + 1], order[where]
    assembly = strict()
    assembly.begin(beginning(0, 10 * len(cut)))

    def take_all() -> None:
        for number in order:
            assembly.add(number, 10 * number, cut[number])

    with pytest.raises(RemoteProtocolError) as caught:
        take_all()
    assert caught.value.fields["path"] == "Piece.number"


def test_sizes_that_lie_are_refused() -> None:
    assembly = strict()
    assembly.begin(beginning(0, 15))
    assert assembly.add(0, 0, b"x" * 10) is None
    assert refused(assembly, 1, 10, b"x" * 6) == "Piece.payload"
    assert refused(strict(), 0, 0, b"") == "Piece.payload"
    assert refused(strict(), 0, 0, bytes(MAX_PIECE_BYTES + 1)) == "Piece.payload"


@pytest.mark.parametrize("offset", [0, 9, 11, 2**32 - 1])
def test_offsets_that_lie_are_refused(offset: int) -> None:
    assembly = strict()
    assembly.begin(beginning(0, 15))
    assert assembly.add(0, 0, b"x" * 10) is None
    assert refused(assembly, 1, offset, b"x") == "Piece.offset"


def test_a_frame_that_begins_before_the_last_is_whole_is_refused() -> None:
    assembly = strict()
    assembly.begin(beginning(0, 15))
    with pytest.raises(RemoteProtocolError, match="15 bytes are missing"):
        assembly.begin(beginning(1, 15))


def test_a_piece_of_no_frame_is_refused_once_frames_have_come() -> None:
    assembly = strict()
    assert assembly.add(7, 30, b"of a frame that began before this side did") is None
    assembly.begin(beginning(0, 1))
    assert assembly.add(8, 0, b"x") is not None
    assert refused(assembly, 9, 0, b"x") == "Piece.number"


def once() -> Assembly:
    """One connection has been replaced."""
    breaks = [True]
    return Assembly(lambda: bool(breaks) and breaks.pop())


def complete(assembly: Assembly, frame: int, first: int) -> None:
    """A frame of two pieces, the first with this number, arrives whole."""
    assembly.begin(beginning(frame, 20))
    assert assembly.add(first, 0, b"c" * 10) is None
    whole = assembly.add(first + 1, 10, b"d" * 10)
    assert whole is not None
    assert whole[0] == beginning(frame, 20)
    assert bytes(whole[1]) == b"c" * 10 + b"d" * 10
    assert assembly.upto == first + 2


@pytest.mark.parametrize("left", [[], [2, 3], [5], [0, 1]], ids=["nothing", "a gap", "the last piece", "from the start again"])
def test_after_a_replaced_connection_the_unfinished_frame_is_forgotten(left: list[int]) -> None:
    assembly = once()
    assembly.begin(beginning(0, 60))
    assembly.add(0, 0, b"a" * 10)
    for number in left:  # what ZeroMQ still had of the frame
        assert assembly.add(number, 10 * number, b"b" * 10) is None
    complete(assembly, 1, left[-1] + 1 if left else 40)
    assert refused(assembly, 0, 0, b"x") == "Piece.number"


def test_frames_that_were_lost_whole_take_no_other_with_them() -> None:
    assembly = once()
    complete(assembly, 0, 0)
    complete(assembly, 3, 40)
    assembly.begin(beginning(4, 20))
    assert refused(assembly, 50, 0, b"x") == "Piece.number"


def test_a_frame_whose_first_pieces_were_lost_is_never_delivered() -> None:
    assembly = once()
    complete(assembly, 0, 0)
    assembly.begin(beginning(1, 40))
    for number in (3, 4, 5):
        assert assembly.add(number, 10 * (number - 2), b"b" * 10) is None
    complete(assembly, 2, 6)
