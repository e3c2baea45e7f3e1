"""What a process may use of its machine, under affinity and control groups of both versions, nested; real ones where they can be
made, and trees of files."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from bloombee import machine
from bloombee.machine import Share, cores, free_memory

GIB = 2**30
NONE_V1 = 0x7FFFFFFFFFFFF000


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """64 cores and 500 GiB free, in the tests on trees of files."""
    if "root" in request.fixturenames:
        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=500 * GIB))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path


def write(root: Path, **files: object) -> None:
    """``files`` by path; __ is a slash, and _dot_ a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def version_2(root: Path, own: str, mounted: str = "/") -> None:
    write(
        root,
        proc__self__cgroup=f"0::{own}",
        proc__self__mountinfo=f"30 23 0:26 {mounted} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate",
    )


def version_1(root: Path, own: str, mounted: str = "/") -> None:
    write(
        root,
        proc__self__cgroup=f"9:name=systemd:/\n4:memory:{own}\n1:cpu,cpuacct:{own}\n0::/",
        proc__self__mountinfo=(
            f"32 31 0:29 {mounted} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
            f"35 31 0:32 {mounted} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
        ),
    )


def test_without_groups_the_machine_is_ours(root: Path) -> None:
    assert cores(root) == Share(64)
    assert free_memory(root) == Share(500 * GIB)


def test_an_affinity_counts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert cores(root) == Share(2, "an affinity to 2 of 64 cores")


def test_a_container_of_version_2(root: Path) -> None:
    version_2(root, "/")
    write(
        root,
        sys__fs__cgroup__cpu_dot_max="250000 100000",
        sys__fs__cgroup__memory_dot_max=8 * GIB,
        sys__fs__cgroup__memory_dot_high="max",
        sys__fs__cgroup__memory_dot_current=3 * GIB,
        sys__fs__cgroup__memory_dot_stat=f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB // 2}\nslab_reclaimable {GIB // 2}",
    )
    assert cores(root) == Share(2, f"the quota of 2.5 cores of {root}/sys/fs/cgroup")
    assert free_memory(root) == Share(7 * GIB, f"the limit of 8.0 GiB of {root}/sys/fs/cgroup"), "caches of files can be had"


def test_the_tightest_of_nested_groups_binds(root: Path) -> None:
    version_2(root, "/user.slice/job/step")
    job = "sys__fs__cgroup__user_dot_slice__job__"
    write(root, **{job + "step__memory_dot_max": 9 * GIB, job + "step__memory_dot_current": GIB})
    write(root, **{job + "memory_dot_max": 10 * GIB, job + "memory_dot_current": 6 * GIB})
    write(root, **{job + "step__cpu_dot_max": "max 100000", "sys__fs__cgroup__user_dot_slice__cpu_dot_max": "50000 100000"})
    assert free_memory(root) == Share(4 * GIB, f"the limit of 10.0 GiB of {root}/sys/fs/cgroup/user.slice/job")
    assert cores(root).amount == 1, "half a core is one thread"


def test_memory_above_high_is_as_good_as_none(root: Path) -> None:
    version_2(root, "/")
    write(
        root,
        sys__fs__cgroup__memory_dot_max="max",
        sys__fs__cgroup__memory_dot_high=GIB,
        sys__fs__cgroup__memory_dot_current=2 * GIB,
    )
    assert free_memory(root).amount == 0


def test_groups_of_version_1(root: Path) -> None:
    version_1(root, "/batch/job")
    memory, cpu = "sys__fs__cgroup__memory__batch__", "sys__fs__cgroup__cpu,cpuacct__batch__"
    write(
        root,
        **{
            memory + "job__memory_dot_limit_in_bytes": NONE_V1,
            memory + "memory_dot_limit_in_bytes": 4 * GIB,
            memory + "memory_dot_usage_in_bytes": 2 * GIB,
            memory + "memory_dot_stat": f"inactive_file 0\ntotal_inactive_file {GIB}\ntotal_active_file 0",
            cpu + "job__cpu_dot_cfs_quota_us": -1,
            cpu + "job__cpu_dot_cfs_period_us": 100000,
            cpu + "cpu_dot_cfs_quota_us": 300000,
            cpu + "cpu_dot_cfs_period_us": 100000,
        },
    )
    assert free_memory(root) == Share(3 * GIB, f"the limit of 4.0 GiB of {root}/sys/fs/cgroup/memory/batch")
    assert cores(root) == Share(3, f"the quota of 3 cores of {root}/sys/fs/cgroup/cpu,cpuacct/batch")


def test_a_limit_above_what_a_container_sees_binds_in_version_1(root: Path) -> None:
    version_1(root, "/")
    group = "sys__fs__cgroup__memory__"
    write(
        root,
        **{
            group + "memory_dot_limit_in_bytes": NONE_V1,
            group + "memory_dot_usage_in_bytes": GIB,
            group + "memory_dot_stat": f"hierarchical_memory_limit {5 * GIB}",
        },
    )
    assert free_memory(root).amount == 4 * GIB


@pytest.mark.parametrize("own", ["/docker/abc", "/docker/abc/../..", "/elsewhere"])
def test_a_path_that_the_mount_does_not_show_is_the_mount(root: Path, own: str) -> None:
    """A container without a namespace of its own sees the host's path, and its own group where that is mounted."""
    version_2(root, own, mounted="/docker/abc")
    write(root, sys__fs__cgroup__memory_dot_max=GIB, sys__fs__cgroup__memory_dot_current=0)
    assert free_memory(root) == Share(GIB, f"the limit of 1.0 GiB of {root}/sys/fs/cgroup")


@pytest.mark.parametrize("text", ["", "max", "nonsense", "0 100000", "100000 0", "-1 100000", "100000"])
def test_a_quota_of_no_sense_is_none(root: Path, text: str) -> None:
    version_2(root, "/")
    write(root, sys__fs__cgroup__cpu_dot_max=text, sys__fs__cgroup__memory_dot_max=text)
    assert cores(root).amount == 64


SEEN = "from bloombee.machine import cores, free_memory; print(cores().amount, free_memory().amount, free_memory().bound_by)"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_process_held_to_one_core_takes_one() -> None:
    one = {min(os.sched_getaffinity(0))}
    out = subprocess.run(
        [sys.executable, "-c", SEEN], preexec_fn=lambda: os.sched_setaffinity(0, one), capture_output=True, text=True, check=True
    )
    assert out.stdout.split()[0] == "1"


@contextlib.contextmanager
def real_group(controller: str, files: dict[str, str]) -> Iterator[Path]:
    """A group within this process's own, with ``files`` that set its limits; skips where none can be made."""
    own = next(machine._groups(controller, machine.ROOT), None)
    if own is None:
        pytest.skip(f"no control groups of {controller} here")
    group = own / f"bloombee-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made in {own}: {error.strerror}")
    try:
        for name, text in files.items():
            if not (group / name).exists():
                pytest.skip(f"{own} hands its groups no {name}")
            (group / name).write_text(text)
        yield group
    finally:
        group.rmdir()


def seen_in(group: Path) -> list[str]:
    """What a process in ``group`` takes for its share."""

    def enter() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    try:
        out = subprocess.run([sys.executable, "-c", SEEN], preexec_fn=enter, capture_output=True, text=True, check=True)
    except subprocess.SubprocessError as error:
        pytest.skip(f"no process can be put into {group}: {error}")
    return out.stdout.split(maxsplit=2)


def is_version_2(controller: str) -> bool:
    own = next(machine._groups(controller, machine.ROOT), None)
    return own is not None and (own / "cgroup.controllers").exists()


def test_a_process_in_a_group_of_256_mib_offers_no_more() -> None:
    limit = "memory.max" if is_version_2("memory") else "memory.limit_in_bytes"
    with real_group("memory", {limit: str(256 << 20)}) as group:
        _, free, bound_by = seen_in(group)
    assert 128 << 20 < int(free) <= 256 << 20
    assert "0.2 GiB" in bound_by
    assert str(group) in bound_by


def test_a_process_with_a_quota_of_one_core_takes_one_thread() -> None:
    files = {"cpu.max": "150000 100000"}
    if not is_version_2("cpu"):
        files = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"}
    with real_group("cpu", files) as group:
        assert seen_in(group)[0] == "1"
