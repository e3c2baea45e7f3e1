"""uvloop is used where it is, and missed where it is not."""

from __future__ import annotations

import asyncio
import errno
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bloombee import loop_thread
from bloombee.loop_thread import LoopThread
from bloombee.roles import event_loop


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    event_loop._factory.cache_clear()
    yield
    event_loop._factory.cache_clear()


def test_without_uvloop_asyncio_serves_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with caplog.at_level(logging.INFO, logger="bloombee"):
        loops = [event_loop.new_event_loop() for _ in range(2)]
    for loop in loops:
        assert isinstance(loop, asyncio.SelectorEventLoop)
        loop.close()
    assert [record.message.split(" (")[0] for record in caplog.records] == ["no uvloop"]


def test_uvloop_serves_where_it_is() -> None:
    uvloop = pytest.importorskip("uvloop", reason="the loop that is asked for is not installed")
    loop = event_loop.new_event_loop()
    assert isinstance(loop, uvloop.Loop)
    loop.close()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_loop_ends_where_standard_files_are_closed(closed: str) -> None:
    program = "from bloombee.roles.event_loop import new_event_loop; new_event_loop().close()"
    done = subprocess.run(["/bin/sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, program], timeout=60)
    assert done.returncode == 0


def test_a_thread_without_means_for_a_loop_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> asyncio.AbstractEventLoop:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(loop_thread, "new_event_loop", fail)
    with pytest.raises(OSError, match="too many"):
        LoopThread("none")


def test_a_swarm_answers_without_uvloop() -> None:
    program = (
        "import sys; sys.modules['uvloop'] = None\n"
        "import bloombee\n"
        "with bloombee.Runtime.sync('standin:64x2', workers=1, pace='1,0,0') as rt:\n"
        "    print(len(rt.generate([1, 2], max_new_tokens=3).token_ids), type(rt._runtime._home.loop).__module__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout.split()[:1], done.returncode) == (["3"], 0), done.stderr
