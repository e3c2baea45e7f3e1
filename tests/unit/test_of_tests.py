"""What the files of the tests may not do, for they share processes."""

from __future__ import annotations

import re
from pathlib import Path

FILES = sorted(Path(__file__).parents[1].rglob("*.py"))
CLOCK = re.compile(r"""setattr\(\s*(?:\w+\.)*time\s*,|setattr\(\s*["'][\w.]*\btime\.\w+["']""")


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest imports them by it, and refuses the second."""
    names = [path.name for path in FILES if path.name.startswith("test_")]
    assert len(names) > 100
    assert sorted(names) == sorted(set(names))


def test_no_test_sets_the_clock_of_the_whole_process() -> None:
    """Swarms that other tests share are led from it, and take each other for lost. A module's ``time`` may be replaced."""
    assert [path.name for path in FILES if path.name != Path(__file__).name and CLOCK.search(path.read_text("utf-8"))] == []
    for fault in ("patch.setattr(module.time, 'monotonic', f)", "setattr(time, name, f)", 'setattr("bloombee.x.time.sleep", f)'):
        assert CLOCK.search(fault)
    for fine in ('setattr(module, "time", fake)', 'setattr("bloombee.x.time", fake)', "setattr(lifetime, 'x', 1)"):
        assert not CLOCK.search(fine)
