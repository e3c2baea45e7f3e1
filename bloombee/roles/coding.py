"""The activation codec at work on one boundary: a sender's side and a receiver's side.

The sender begins with the default table, collects rows of its own traffic, fits a table to them on a thread of its own, ships it
once and uses it after the receiver has said that it holds it. When the ratio falls it fits again. Nothing is learned in
lockstep: a message names its table, a receiver that does not know it says so, and the frame comes again with the default.
Source: docs/codec.md, docs/wire.md ("Codec tables").
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from bloombee.codec import api
from bloombee.codec.checksum import crc32c
from bloombee.codec.choice import CodecMode, CodecSpeed, LinkChoice
from bloombee.codec.fit import fit
from bloombee.codec.table import Table, default_table
from bloombee.errors import BloomBeeError, RemoteProtocolError
from bloombee.roles.kept import kept
from bloombee.types import Dtype
from bloombee.wire.envelope import HIDDEN, TensorHeader

log = logging.getLogger(__name__)
RAW = 0
Payload = tuple[TensorHeader, Any]
"""A tensor as it travels: header and a buffer of ``header.encoded_bytes`` bytes."""

FIT_ROWS = 256
"""Rows to collect before a table is fitted."""
FIT_BYTES = 8 << 20
"""At most so many bytes of them."""
DECAY = 0.02
"""A ratio worse by this share than the table had at first calls for a new one."""
MIN_FRAMES_BETWEEN_FITS = 64
MAX_TABLES = 64
"""That a receiver keeps of one boundary; the oldest goes first."""


class Apart(Protocol):
    """[rows, d] values that are on a device."""

    def raw(self) -> memoryview:
        """A copy of them here, as bytes."""
        ...

    def encoded(self, table: Table) -> memoryview | None:
        """A message with them, made there, valid until the next; None: the processor is to make it from :meth:`raw`."""
        ...


class Sender:
    """Encodes what leaves a stage. ``encode`` and ``encode_apart`` belong to one thread, of results or the device; all else to
    the event loop.

    Args:
        ship: called on the fitting thread with a table to send to the receiver.
    """

    def __init__(self, dtype: Dtype, channels: int, mode: CodecMode, ship: Callable[[Table], None]) -> None:
        self.choice = LinkChoice(mode, CodecSpeed(1e9, 1e9, 1e-4), ratio=1.3)
        self.num_encoded = 0
        """Calls of the encoder."""
        self.raw_bytes = self.sent_bytes = 0
        """Of all frames, before and after."""
        self._dtype = dtype
        self._channels = channels
        self._scratch = bytearray()
        self._ship = ship
        self._default = default_table(dtype, channels)
        self._table = self._default
        self._made: dict[bytes, Table] = {}
        """Every table fitted of late: a frame under way may need any of them to be coded anew."""
        self._needs_fit = True
        self._samples: list[bytes] = []
        self._sample_rows = 0
        self._is_fitting = False
        self._frames_since_fit = 0
        self._first_ratio: float | None = None
        self._ratio: float | None = None
        if mode is not CodecMode.OFF:
            self.choice = replace(self.choice, speed=measure_speed(dtype, channels))

    @property
    def default_key(self) -> bytes:
        """Of the table that everyone has."""
        return self._default.key

    def set_link(self, bandwidth_bytes_per_s: float | None, rtt_s: float | None) -> None:
        """What the link has shown; decides whether coding pays."""
        self.choice = replace(
            self.choice, bandwidth_bytes_per_s=bandwidth_bytes_per_s, rtt_s=rtt_s, ratio=self._ratio or self.choice.ratio
        )

    def explain(self) -> str:
        """Whether frames of one row are coded now, and why; for people."""
        return self.choice.explain(self._channels * self._dtype.num_bytes)

    def encode(self, raw: memoryview, rows: int) -> Payload:
        """A frame of [rows, d] values, coded if that pays; the caller's own, whatever becomes of ``raw``."""
        if not self.choice.pays(raw.nbytes):
            self._count(raw.nbytes, raw.nbytes)
            return self._payload(RAW, kept(raw), raw.nbytes, rows)
        table = self._table
        payload = self._encoded(raw, rows, table)
        self._count(payload[0].encoded_bytes, raw.nbytes)
        self._learn(raw, rows, payload[0].encoded_bytes)
        return payload

    def encode_apart(self, values: Apart, rows: int) -> Payload:
        """As :meth:`encode`, of values on a device: coded there where that is quicker and no rows of them are collected."""
        raw_bytes = rows * self._channels * self._dtype.num_bytes
        pays = self.choice.pays(raw_bytes) and not self._collects()
        message = values.encoded(self._table) if pays else None
        if message is None:
            return self.encode(values.raw(), rows)
        self.num_encoded += 1
        self._count(message.nbytes, raw_bytes)
        self._follow(raw_bytes / message.nbytes)
        return self._payload(api.CODEC_ID, kept(message), raw_bytes, rows)

    def _count(self, sent_bytes: int, raw_bytes: int) -> None:
        """A frame; whoever asks from another thread in between sees no ratio that there cannot be."""
        self.sent_bytes += sent_bytes
        self.raw_bytes += raw_bytes

    def held(self, key: bytes) -> None:
        """The receiver holds the table: use it."""
        table = self._made.get(key)
        if table is not None:
            self._table = table
            self._first_ratio = self._ratio = None

    def table(self, key: bytes) -> Table | None:
        """One that was fitted of late."""
        return self._made.get(key)

    def unknown(self, key: bytes) -> None:
        """The receiver does not know it (it restarted, or the table was lost): back to the default, and fit anew."""
        if self._table.key == key:
            self._needs_fit = True
            self._table = self._default
            self._first_ratio = self._ratio = None

    def restart(self) -> None:
        """Another receiver: it holds the default table and no other."""
        self.unknown(self._table.key)

    def decode(self, payload: Payload) -> memoryview:
        """[rows * d] values as bytes, of a frame that this side has made; of one that was not coded the very buffer."""
        header, buffer = payload
        if header.codec == RAW:
            return memoryview(buffer)
        raw = bytearray(header.raw_bytes)
        api.decode(buffer, raw, shape=(header.shape[0], self._channels), dtype=self._dtype, tables=self._made)
        return memoryview(raw)

    def recode(self, payload: Payload) -> Payload:
        """The same frame for a receiver that does not know its table: with the default one. Not for the event loop."""
        return self._encoded(self.decode(payload), payload[0].shape[0], self._default)

    def _encoded(self, raw: memoryview, rows: int, table: Table) -> Payload:
        bound = api.bound(rows * self._channels, self._dtype)
        if len(self._scratch) < bound:
            self._scratch = bytearray(bound)
        size = api.encode(raw, shape=(rows, self._channels), dtype=self._dtype, table=table, out=self._scratch)
        self.num_encoded += 1
        return self._payload(api.CODEC_ID, kept(memoryview(self._scratch)[:size]), raw.nbytes, rows)

    def _payload(self, codec: int, buffer: memoryview, raw_bytes: int, rows: int) -> Payload:
        header = TensorHeader(HIDDEN, self._dtype, (rows, self._channels), codec, raw_bytes, buffer.nbytes, crc32c(buffer))
        return header, buffer

    # -- learning --------------------------------------------------------------------------

    def _learn(self, raw: memoryview, rows: int, sent: int) -> None:
        self._follow(raw.nbytes / sent)
        if not self._collects():
            return
        self._samples.append(bytes(raw))
        self._sample_rows += rows
        if self._sample_rows >= FIT_ROWS or self._sample_rows * self._channels * self._dtype.num_bytes >= FIT_BYTES:
            samples, self._samples, self._sample_rows = b"".join(self._samples), [], 0
            self._is_fitting = True
            threading.Thread(target=self._fit, args=(samples,), name="bloombee-codec-fit", daemon=True).start()

    def _follow(self, ratio: float) -> None:
        """What a frame came to."""
        self._ratio = ratio if self._ratio is None else 0.98 * self._ratio + 0.02 * ratio
        self._frames_since_fit += 1
        if self._first_ratio is None and self._frames_since_fit >= 16:
            self._first_ratio = self._ratio

    def _collects(self) -> bool:
        """Whether rows are wanted to fit a table to."""
        return not self._is_fitting and self._wants_fit()

    def _wants_fit(self) -> bool:
        if self._needs_fit:
            return True
        decayed = self._first_ratio is not None and self._ratio is not None and self._ratio < self._first_ratio * (1 - DECAY)
        return decayed and self._frames_since_fit >= MIN_FRAMES_BETWEEN_FITS

    def _fit(self, samples: bytes) -> None:
        try:
            limit = FIT_ROWS * self._channels * self._dtype.num_bytes
            table = fit(samples[-limit:], self._dtype, channels=self._channels)
            self._made[table.key] = table
            while len(self._made) > MAX_TABLES:
                del self._made[next(iter(self._made))]
            self._needs_fit = False
            self._frames_since_fit = 0
            self._ship(table)
        except (ValueError, BloomBeeError):
            log.exception("fitting a codec table failed; the default goes on")
        finally:
            self._is_fitting = False


class Receiver:
    """Decodes what arrives at a stage. :meth:`decode` belongs to the device thread, everything else to the event loop."""

    def __init__(self, dtype: Dtype, channels: int) -> None:
        self._dtype = dtype
        self._channels = channels
        self._default = default_table(dtype, channels)
        self._tables: dict[bytes, Table] = {}

    @property
    def tables(self) -> Mapping[bytes, Table]:
        """Those held, by key."""
        return self._tables

    def take(self, body: bytes) -> bytes:
        """Hold a table; its key. Raises CorruptPayload if it is none, RemoteProtocolError if it is another boundary's."""
        table = Table.from_bytes(body)
        if table.dtype is not self._dtype or table.channels != self._channels:
            raise RemoteProtocolError(
                f"a codec table for {table.dtype} [., {table.channels}]: this boundary has {self._dtype} [., {self._channels}]",
                path="CodecTable.body",
            )
        self._tables[table.key] = table
        while len(self._tables) > MAX_TABLES:
            del self._tables[next(iter(self._tables))]
        return table.key

    def missing(self, payload: Payload) -> bytes | None:
        """Key of the table that a frame needs and this side does not have."""
        header, buffer = payload
        if header.codec != api.CODEC_ID:
            return None
        key = api.table_key(buffer)
        return None if key is None or key in self._tables or key == self._default.key else key

    def is_whole(self, payload: Payload) -> bool:
        """A frame came as it left: its checksum says so. To be asked before anything of it is taken.

        Raises:
            RemoteProtocolError: another dtype, width or codec than this boundary's.
        """
        header, buffer = payload
        if header.dtype != self._dtype or header.shape[1] != self._channels or header.codec not in (RAW, api.CODEC_ID):
            raise RemoteProtocolError(
                f"activations of {header.dtype} {list(header.shape)}, codec {header.codec}: this stage takes"
                f" {self._dtype} [rows, {self._channels}], codec {RAW} or {api.CODEC_ID}",
                path="tensors[0]",
            )
        return crc32c(buffer) == header.checksum

    def decode(self, payload: Payload) -> memoryview:
        """[rows * d] values as bytes, of a frame that is whole; of one that was not coded the very buffer.

        Raises:
            CorruptPayload: the bytes do not decode.
            CodecUnavailable: its table is not held.
        """
        header, buffer = payload
        if header.codec == RAW:
            return memoryview(buffer)
        raw = bytearray(header.raw_bytes)
        api.decode(buffer, raw, shape=(header.shape[0], self._channels), dtype=self._dtype, tables=self._tables)
        return memoryview(raw)


def measure_speed(dtype: Dtype, channels: int) -> CodecSpeed:
    """Of this machine now, on a Gaussian matrix of about a quarter of a megabyte and on one row. Takes a few milliseconds."""
    rows = max(1, (1 << 18) // (channels * dtype.num_bytes))
    values = np.random.default_rng(0).standard_normal((rows, channels)).astype(np.float32)
    if dtype is Dtype.BFLOAT16:
        raw = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    else:
        raw = values.astype(np.float16 if dtype is Dtype.FLOAT16 else np.float32).tobytes()
    table = default_table(dtype, channels)
    large = _time(raw, rows, channels, dtype, table)
    small = _time(raw[: channels * dtype.num_bytes], 1, channels, dtype, table)
    fixed = max(1e-6, sum(small) - sum(large) / rows)
    return CodecSpeed(len(raw) / large[0], len(raw) / large[1], fixed)


def _time(raw: bytes, rows: int, channels: int, dtype: Dtype, table: Table) -> tuple[float, float]:
    """(encode seconds, decode seconds), the best of a few."""
    out, back = bytearray(api.bound(rows * channels, dtype)), bytearray(len(raw))
    best = [float("inf"), float("inf")]
    for _ in range(5):
        t0 = time.perf_counter()
        size = api.encode(raw, shape=(rows, channels), dtype=dtype, table=table, out=out)
        t1 = time.perf_counter()
        api.decode(memoryview(out)[:size], back, shape=(rows, channels), dtype=dtype)
        t2 = time.perf_counter()
        best = [min(best[0], t1 - t0), min(best[1], t2 - t1)]
    return max(best[0], 1e-9), max(best[1], 1e-9)
