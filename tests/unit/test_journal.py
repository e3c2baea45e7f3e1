"""The records of a head's state, and what they come to."""

from __future__ import annotations

import pytest

from bloombee.errors import ConfigError
from bloombee.pipeline.journal import (
    MAGIC,
    Asked,
    Gave,
    Given,
    Issued,
    Journal,
    Kept,
    Listened,
    Noted,
    Numbered,
    Planned,
    Reading,
    Record,
    Seat,
    Served,
    Taken,
    given,
    pack,
    read,
    should_rewrite,
    whole,
)
from bloombee.plan.plan import Prediction
from bloombee.types import FinishReason, SchedulerPlace
from bloombee.wire.messages import Grammar, Sampling

SAMPLING = Sampling(0.8, 40, 0.95, 0.05, 1.1, 0.5, 0.25, 2**64 - 1, 2)
BIASES, GRAMMAR = ((5, -2.5), (9, 100.0)), Grammar("regex", "[a-zé]+")
PREDICTION = Prediction("throughput", 3, 8, 100.0, 0.2, 0.1, "link 1 -> 2", 0.01, (None, 0.66), (("w3", "slow"),), ("w1",))


def _asked(number: int, max_time_s: float | None = None) -> Asked:
    prompt = b"".join(token.to_bytes(4, "little") for token in (5, 70000))
    return Asked(number, prompt, SAMPLING, 64, (2, 7), ("\n\n", "é"), "somebody", -3, max_time_s, 1e9, BIASES, GRAMMAR)


RECORDS: tuple[Record, ...] = (
    Listened("tcp://*:0", "tcp://*:7701"),
    Issued(b"s" * 24),
    Issued(b"t" * 24),
    Served("ab" * 16, b'{"model": "demo"}'),
    Noted("line 1", b"Why?"),
    Planned("asked", (Seat(b"1" * 32, 0, 4), Seat(b"2" * 32, 4, 8)), SchedulerPlace.STAGE0, PREDICTION),
    _asked(1),
    Gave(1, (Given(3), Given(70000, -0.5, ((3, -0.5), (4, -1.5))))),
    _asked(2),
    Gave(2, (Given(9),)),
    Gave(1, (Given(4),)),
    Noted("line 2", b"What?"),
    Gave(2, (given(2, None, (), FinishReason.STOP),)),
    _asked(3),
    Noted("line 1", None),
    Taken(3),
    Gave(3, (Given(1),)),
)


def _fold(records: tuple[Record, ...]) -> Journal:
    journal = Journal()
    for record in records:
        journal.take(record)
    return journal


def test_what_was_written_is_read() -> None:
    found = read(MAGIC + b"".join(map(pack, RECORDS)), "here")
    journal = found.journal
    assert found.num_damaged == 0
    assert found.num_bytes == len(MAGIC) + sum(len(pack(record)) for record in RECORDS)
    assert journal == _fold(RECORDS)
    assert journal.next_request == 4
    assert journal.secrets == [b"s" * 24, b"t" * 24]
    assert journal.notes == {"line 2": b"What?"}
    assert list(journal.requests) == [1, 2]
    one, two = journal.requests.values()
    assert (one.output, one.finish) == (b"\3\0\0\0\x70\x11\1\0\4\0\0\0", None)
    assert (two.output, two.finish) == (b"\x09\0\0\0\2\0\0\0", FinishReason.STOP)
    assert journal.planned is not None
    assert journal.planned.prediction == PREDICTION


def test_a_tail_that_is_torn_anywhere_is_cut_and_all_before_it_counts() -> None:
    packed = [pack(record) for record in RECORDS]
    data = MAGIC + b"".join(packed)
    ends = [len(MAGIC)]
    for record in packed:
        ends.append(ends[-1] + len(record))
    for length in range(len(data) + 1):
        found = read(data[:length], "here")
        num_whole = sum(end <= length for end in ends) - 1
        expected = ends[num_whole] if num_whole >= 0 else 0
        assert found == Reading(_fold(RECORDS[: max(0, num_whole)]), expected)


def test_a_tail_that_was_overwritten_is_cut() -> None:
    data = MAGIC + b"".join(map(pack, RECORDS))
    last = len(pack(RECORDS[-1]))
    for at in range(len(data) - last, len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x55
        assert read(bytes(damaged), "here") == Reading(_fold(RECORDS[:-1]), len(data) - last)


def test_what_is_damaged_in_the_middle_costs_no_more_than_itself_and_no_token_comes_out_wrong() -> None:
    """Tokens of a request behind the damage do not count unless it was asked there too: some between may be what was lost."""
    packed = [pack(record) for record in RECORDS]
    data = MAGIC + b"".join(packed)
    start = len(MAGIC)
    for index, (record, length) in enumerate(zip(RECORDS[:-1], map(len, packed), strict=False)):
        before = {one.request for one in RECORDS[:index] if isinstance(one, Asked)}
        left = [one for one in RECORDS[index + 1 :] if not (isinstance(one, Gave) and one.request in before)]
        for at in range(start, start + length):
            damaged = bytearray(data)
            damaged[at] ^= 0x55
            found = read(bytes(damaged), "here")
            assert (found.num_bytes, found.num_damaged) == (len(data), length), record
            assert found.journal == _fold((*RECORDS[:index], *left))
        start += length


def test_written_anew_it_comes_to_the_same_in_fewer_bytes() -> None:
    journal = _fold(RECORDS)
    data = whole(journal)
    assert read(data, "here") == Reading(journal, len(data))
    assert len(data) < len(MAGIC) + sum(len(pack(record)) for record in RECORDS)


def test_numbers_of_requests_are_never_given_twice() -> None:
    journal = _fold((_asked(7), Taken(7)))
    again = read(whole(journal), "here").journal
    assert list(again.records()) == [Numbered(8)]
    assert again.next_request == 8


@pytest.mark.parametrize("data", [b"{}", b"\x7fELF", b"bloombee-journal-2\n", bytes(100), MAGIC[:-1] + b"x"])
def test_what_is_no_journal_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"here is no journal of a head: name another directory"):
        read(data, "here")


def test_a_record_of_another_release_is_told_from_damage() -> None:
    from bloombee.codec.checksum import crc32c
    from bloombee.pipeline.journal import _FRAME

    body = b"\x92\x63\x01"  # [99, 1]
    with pytest.raises(ConfigError, match="of another release"):
        read(MAGIC + _FRAME.pack(len(body), crc32c(body)) + body, "here")


def test_time_went_on_while_no_head_was_there() -> None:
    assert Kept(_asked(1)).time_left_s(1e9 + 5) is None
    kept = Kept(_asked(1, 30.0))
    assert [kept.time_left_s(1e9 + later) for later in (-9, 0, 10, 40)] == [30.0, 30.0, 20.0, 0.0]


def test_a_file_is_written_anew_when_most_of_it_is_over() -> None:
    assert not should_rewrite(1 << 20, 0)
    assert should_rewrite((1 << 20) + 1, 0)
    assert not should_rewrite(20 << 20, 10 << 20)
    assert should_rewrite((20 << 20) + 1, 10 << 20)
