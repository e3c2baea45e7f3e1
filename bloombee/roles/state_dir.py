"""The directory of a head's state (``--state``): its key, its journal (``pipeline/journal.py``), and a lock: one head at a time.

Records are written by a thread of their own, a batch at a time and without waiting for the disk: what a killed process had not
written are some tokens of the last moments, which are generated again, the same (ADR 58). A disk that takes no more ends nothing:
as soon as it takes something again the journal is written anew, whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bloombee.errors import ConfigError
from bloombee.pipeline.journal import Gave, Reading, Record, pack, read, should_rewrite, whole
from bloombee.transport import keys
from bloombee.transport.keys import KeyPair

log = logging.getLogger(__name__)
JOURNAL, KEY, LOCK, DRAFT, CUT = "journal", "head.key", "lock", "journal.draft", "journal.cut"
BATCH_S = 0.05
"""Tokens wait so long for others to be written with them."""
RETRY_S = 5.0
"""After the disk has refused something, it is asked again so much later."""


class StateDir:
    """Of one head, from its making until :meth:`close`.

    Args:
        path: made, if it is not there, for this user alone.

    Raises:
        ConfigError: another head has it; it is no head's state, or another release's; it cannot be read or written.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        with contextlib.ExitStack() as opened:
            try:
                self._lock = _locked(self.path, opened)
                self._folder = _opened(self.path, os.O_RDONLY | os.O_DIRECTORY, opened)
                found, self._descriptor, self._num_bytes, self.num_cut = _open_journal(self.path / JOURNAL, opened)
                self.keys = _key_in(self.path)
            except (OSError, ValueError) as error:
                raise _unusable(self.path, error) from error
            opened.pop_all()
        self.journal, self.num_damaged = found.journal, found.num_damaged
        written_anew = whole(self.journal)
        self._num_whole = len(written_anew)
        self._mirror = read(written_anew, str(self.path)).journal
        """What was put so far; the thread's own."""
        if self.num_damaged:
            with contextlib.suppress(OSError):  # it is read again as it was, then
                self._rewrite()
        self._refused_at: float | None = None
        self._records: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._trouble: Callable[[str], object] = log.warning
        self._thread = threading.Thread(target=self._main, name="bloombee-state", daemon=True)
        self._thread.start()

    def on_trouble(self, tell: Callable[[str], object]) -> None:
        """``tell``, from any thread, when something is not kept, and when everything is again."""
        self._trouble = tell

    def put(self, record: Record) -> None:
        """Have it written soon. From any thread; does not wait."""
        self._records.put(record)

    def close(self) -> None:
        """Write what was put, and let another head have the directory. Blocks."""
        self._records.put(None)
        self._thread.join()
        for descriptor in (self._descriptor, self._folder, self._lock):
            os.close(descriptor)

    # -- on the thread ---------------------------------------------------------------------

    def _main(self) -> None:
        is_over = False
        while not is_over:
            batch, is_over = self._batch()
            for record in batch:
                self._mirror.take(record)
            self._write(batch, is_over)
            if not is_over and all(isinstance(record, Gave) for record in batch):
                time.sleep(BATCH_S)  # somebody waits for nothing of it

    def _batch(self) -> tuple[list[Record], bool]:
        """What was put, at least one, or none while the disk is to be asked again; and whether that was all."""
        batch: list[Record] = []
        try:
            record = self._records.get(timeout=None if self._refused_at is None else RETRY_S)
        except queue.Empty:
            return batch, False
        while record is not None:
            batch.append(record)
            try:
                record = self._records.get_nowait()
            except queue.Empty:
                return _merged(batch), False
        return _merged(batch), True

    def _write(self, batch: Iterable[Record], is_over: bool) -> None:
        try:
            if self._refused_at is not None:
                if not is_over and time.monotonic() - self._refused_at < RETRY_S:
                    return
                self._rewrite()
                self._refused_at = None
                self._trouble("everything is kept again")
                return
            data = b"".join(map(pack, batch))
            _write_all(self._descriptor, data)
            if not os.fstat(self._descriptor).st_nlink:
                raise FileNotFoundError(errno.ENOENT, "the journal was removed")
            self._num_bytes += len(data)
            if should_rewrite(self._num_bytes, self._num_whole):
                self._rewrite()
        except OSError as error:
            if self._refused_at is None:
                why = error.strerror or error
                self._trouble(f"nothing is kept in {self.path} for now ({why}): a head that is started again goes on from before")
            self._refused_at = time.monotonic()

    def _rewrite(self) -> None:
        """With the fewest records, beside the old file until all of it is on the disk.

        In the directory that is locked, whatever has come in its place: that may be another head's.
        """
        data, folder = whole(self._mirror), self._folder
        descriptor = os.open(DRAFT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600, dir_fd=folder)
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
            os.replace(DRAFT, JOURNAL, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(DRAFT, dir_fd=folder)
            raise
        os.close(self._descriptor)
        self._descriptor, self._num_bytes, self._num_whole = descriptor, len(data), len(data)


def _merged(batch: Iterable[Record]) -> list[Record]:
    """Tokens of one request that follow each other without anything else said of it, in one record."""
    merged: list[Record] = []
    last: dict[int, int] = {}
    for record in batch:
        if isinstance(record, Gave) and record.request in last:
            before = merged[last[record.request]]
            assert isinstance(before, Gave)
            merged[last[record.request]] = Gave(record.request, before.tokens + record.tokens)
            continue
        if isinstance(record, Gave):
            last[record.request] = len(merged)
        merged.append(record)
    return merged


def _write_all(descriptor: int, data: bytes) -> None:
    """Raises OSError; a part may have been written."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _opened(path: Path, flags: int, opened: contextlib.ExitStack) -> int:
    """A descriptor, which ``opened`` closes. Raises OSError."""
    descriptor = os.open(path, flags, 0o600)
    opened.callback(os.close, descriptor)
    return descriptor


def _locked(path: Path, opened: contextlib.ExitStack) -> int:
    """The lock, held. Raises OSError; ConfigError: it is another's, or the directory something else's."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    others = sorted(set(os.listdir(path)) - {JOURNAL, KEY, LOCK, DRAFT, CUT})
    if others and not (path / JOURNAL).exists():
        raise ConfigError(
            f"state: {path} holds {others[0]!r} and no state of a head: name a new directory, or an empty one",
            field="state",
            path=str(path),
        )
    descriptor = _opened(path / LOCK, os.O_RDWR | os.O_CREAT, opened)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        who = f", process {owner}," if owner else ""
        raise ConfigError(
            f"state: another head{who} has {path}: end that, or name another directory", field="state", path=str(path)
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _key_in(path: Path) -> KeyPair:
    """The head's key, made when it is first asked for. Raises ConfigError."""
    file = path / KEY
    if not file.exists():
        keys.save(file, keys.generate())
    return keys.load(file)


def _open_journal(file: Path, opened: contextlib.ExitStack) -> tuple[Reading, int, int, int]:
    """What it holds, where to write, how many bytes there are, and how many were cut: those, or all of a damaged file, are
    kept beside it, where there is room. Raises OSError, ConfigError."""
    descriptor = _opened(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, opened)
    data = file.read_bytes()
    found = read(data, str(file))
    count = found.num_bytes
    cut = data[count:]
    if aside := data if found.num_damaged else cut:
        with contextlib.suppress(OSError), contextlib.ExitStack() as kept:
            _write_all(_opened(file.with_name(CUT), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, kept), aside)
    os.ftruncate(descriptor, count)
    if not count:
        _write_all(descriptor, whole(found.journal))
        count = os.fstat(descriptor).st_size
    return found, descriptor, count, len(cut)


def _unusable(path: Path, error: OSError | ValueError) -> ConfigError:
    """A ValueError: of a name that no file can have."""
    why = getattr(error, "strerror", None) or error
    return ConfigError(f"state: {path} cannot be used: {why}", field="state", path=str(path))
