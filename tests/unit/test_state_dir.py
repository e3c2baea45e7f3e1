"""The directory of a head's state: what is in it, who may have it, and a disk that takes no more."""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bloombee.errors import ConfigError
from bloombee.pipeline import journal
from bloombee.pipeline.journal import Asked, Gave, Given, Noted, Record, Taken
from bloombee.roles import state_dir
from bloombee.roles.state_dir import StateDir
from bloombee.wire.messages import Sampling

SAMPLING = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, -1)


def _asked(number: int) -> Asked:
    return Asked(number, b"\1\0\0\0", SAMPLING, 9, (), (), "", 0, None, 0.0)


def _left(path: Path, *records: Record) -> None:
    state = StateDir(str(path))
    for record in records:
        state.put(record)
    state.close()


def test_what_was_put_is_there_for_the_next_head_under_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state"
    state = StateDir(str(path))
    public = state.keys.public
    for record in (_asked(1), Gave(1, (Given(5),)), _asked(2), Gave(1, (Given(6),)), Taken(2)):
        state.put(record)
    state.close()
    after = StateDir(str(path))
    after.close()
    assert after.keys.public == public
    assert after.journal.requests[1].given == [Given(5), Given(6)]
    assert list(after.journal.requests) == [1]
    assert after.num_cut == 0


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    _left(tmp_path / "state", Noted("a", b"secret"))
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "state").iterdir()}
    assert modes == {"journal": 0o600, "head.key": 0o600, "lock": 0o600}


def test_two_heads_never_share_one(tmp_path: Path) -> None:
    state = StateDir(str(tmp_path))
    with pytest.raises(ConfigError, match=f"another head, process {os.getpid()}, has .*: end that"):
        StateDir(str(tmp_path))
    state.close()
    StateDir(str(tmp_path)).close()


def test_the_lock_ends_with_the_process_that_has_it(tmp_path: Path) -> None:
    script = f"from bloombee.roles.state_dir import StateDir\nStateDir({str(tmp_path)!r})\nprint('has it', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "has it\n"
        with pytest.raises(ConfigError, match=f"process {other.pid}"):
            StateDir(str(tmp_path))
        other.send_signal(signal.SIGKILL)
        other.wait()
    StateDir(str(tmp_path)).close()


def test_a_torn_tail_is_cut_and_said_and_written_on(tmp_path: Path) -> None:
    _left(tmp_path, _asked(1), Noted("a", b"b"))
    file = tmp_path / "journal"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    state = StateDir(str(tmp_path))
    assert (tmp_path / "journal.cut").read_bytes() == data[-1 - state.num_cut : -1]
    assert state.num_cut == len(journal.pack(Noted("a", b"b"))) - 1
    assert state.journal.notes == {}
    state.put(Noted("c", b"d"))
    state.close()
    after = StateDir(str(tmp_path))
    after.close()
    assert (after.journal.notes, list(after.journal.requests), after.num_cut) == ({"c": b"d"}, [1], 0)


def test_a_bit_that_flipped_in_the_middle_costs_what_it_hit_and_the_file_is_written_anew(tmp_path: Path) -> None:
    _left(tmp_path, Noted("a", b"b"), _asked(1), Noted("c", b"d"))
    file = tmp_path / "journal"
    data = bytearray(file.read_bytes())
    hit = len(journal.pack(Noted("a", b"b")))
    data[data.index(journal.pack(Noted("a", b"b"))) + hit - 1] ^= 1
    file.write_bytes(data)
    state = StateDir(str(tmp_path))
    assert (state.num_damaged, state.num_cut) == (hit, 0)
    assert (state.journal.notes, list(state.journal.requests)) == ({"c": b"d"}, [1])
    assert (tmp_path / "journal.cut").read_bytes() == data
    state.put(Noted("e", b"f"))
    state.close()
    after = StateDir(str(tmp_path))
    after.close()
    assert after.num_damaged == 0
    assert (after.journal.notes, list(after.journal.requests)) == ({"c": b"d", "e": b"f"}, [1])


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"holds 'thesis.tex' and no state of a head: name a new directory"):
        StateDir(str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_garbled_journal_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"garbage")
    for _ in range(2):  # and the lock is free again
        with pytest.raises(ConfigError, match="is no journal of a head: name another directory"):
            StateDir(str(tmp_path))
    assert (tmp_path / "journal").read_bytes() == b"garbage"


def test_a_key_that_others_could_read_is_refused(tmp_path: Path) -> None:
    _left(tmp_path)
    (tmp_path / "head.key").chmod(0o644)
    with pytest.raises(ConfigError, match="others can use it"):
        StateDir(str(tmp_path))


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"state: .*file cannot be used: "):
        StateDir(str(tmp_path / "file"))


def test_what_is_over_is_not_kept_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "LEAST_TO_REWRITE", 10_000)
    for first in range(1, 2001, 100):  # no batch may swallow all of them
        _left(tmp_path, *(record for number in range(first, first + 100) for record in (_asked(number), Taken(number))))
    state = StateDir(str(tmp_path))
    state.put(_asked(2001))
    state.close()
    assert (tmp_path / "journal").stat().st_size < 30_000
    after = StateDir(str(tmp_path))
    after.close()
    assert (list(after.journal.requests), after.journal.next_request) == ([2001], 2002)


def test_a_full_disk_is_said_once_and_all_is_kept_when_it_has_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound on the size of files stands for the disk's end."""
    monkeypatch.setattr(state_dir, "RETRY_S", 0.0)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    said: list[str] = []
    heard = threading.Semaphore(0)

    def tell(what: str) -> None:
        said.append(what)
        heard.release()

    state = StateDir(str(tmp_path))
    state.on_trouble(tell)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        state.put(Noted("big", bytes(5000)))
        assert heard.acquire(timeout=30)
        state.put(_asked(1))
        state.put(Noted("more", b"x"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    state.put(_asked(2))
    assert heard.acquire(timeout=30)
    state.put(Noted("last", b"y"))
    state.close()
    assert [what.split(" (")[0] for what in said] == [f"nothing is kept in {tmp_path} for now", "everything is kept again"]
    after = StateDir(str(tmp_path))
    after.close()
    assert list(after.journal.requests) == [1, 2]
    assert sorted(after.journal.notes) == ["big", "last", "more"]


class Said:
    """What of a state is told of trouble."""

    def __init__(self, state: StateDir) -> None:
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        state.on_trouble(self._said.put)

    def next(self) -> str:
        return self._said.get(timeout=30)


def test_a_directory_that_is_removed_is_said_and_what_comes_in_its_place_is_another_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_dir, "RETRY_S", 0.0)
    monkeypatch.setattr(journal, "LEAST_TO_REWRITE", 100)
    state = StateDir(str(tmp_path / "state"))
    said = Said(state)
    shutil.rmtree(tmp_path / "state")
    state.put(Noted("a", bytes(1000)))
    assert "for now (" in said.next()
    _left(tmp_path / "state", Noted("b", b"another head's"))
    state.put(Noted("a", bytes(2000)))
    state.close()
    after = StateDir(str(tmp_path / "state"))
    after.close()
    assert after.journal.notes == {"b": b"another head's"}


def test_a_journal_that_is_removed_is_written_anew_though_nothing_more_is_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_dir, "RETRY_S", 0.0)
    state = StateDir(str(tmp_path))
    said = Said(state)
    (tmp_path / "journal").unlink()
    state.put(Noted("a", b"b"))
    assert "the journal was removed" in said.next()
    assert said.next() == "everything is kept again"
    assert journal.read((tmp_path / "journal").read_bytes(), "").journal.notes == {"a": b"b"}
    state.close()


def test_a_disk_that_was_full_at_the_start_hinders_no_later_start(tmp_path: Path) -> None:
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for most in (0, 10, 50, 200):
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
            with contextlib.suppress(ConfigError):
                StateDir(str(tmp_path)).close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    StateDir(str(tmp_path)).close()


def test_a_head_that_was_killed_while_it_made_its_key_is_no_hindrance(tmp_path: Path) -> None:
    script = (
        "import os\nfrom bloombee.roles import state_dir\nfrom bloombee.transport import keys\n"
        f"keys.os.link = lambda *_: os._exit(9)\nstate_dir.StateDir({str(tmp_path)!r})"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert any(file.suffix == ".tmp" for file in tmp_path.iterdir())
    StateDir(str(tmp_path)).close()


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\ud800", "/dev/null/x"])
def test_a_name_that_no_directory_can_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        StateDir(name)
