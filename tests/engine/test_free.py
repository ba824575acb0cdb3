"""Memory left to a process on a CPU, on systems set up as files in a folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dipdefense.engine import free


def a_system(root: Path, files: dict[str, str]) -> Path:
    """A root folder with these files and those that every Linux has."""
    defaults = {
        "proc/meminfo": "MemTotal: 8000 kB\nMemFree: 100 kB\nMemAvailable: 5000 kB\nHugePages_Total: 0\n",
        "proc/self/cgroup": "",
        "proc/self/status": "Name:\tpython\nVmSize:\t 700 kB\nVmData:\t 300 kB\n",
    }
    for name, text in (defaults | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Limits on the process by resource, none by default."""
    resource = pytest.importorskip("resource")
    found: dict[int, int] = {}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (found.get(which, resource.RLIM_INFINITY), -1))
    return found


def second(folder: str, limit: int | str, usage: int, cache: int) -> dict[str, str]:
    folder = f"sys/fs/cgroup{folder}"
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{usage}\n",
        f"{folder}/memory.stat": f"anon 1\ninactive_file {cache}\n",
    }


def first(folder: str, limit: int, usage: int, cache: int) -> dict[str, str]:
    folder = f"sys/fs/cgroup/memory{folder}"
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{usage}\n",
        f"{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {cache}\n",
    }


IN_A = {"proc/self/cgroup": "0::/a/b\n"}
IN_OLD_A = {"proc/self/cgroup": "9:name=systemd:/\n5:cpu,cpuacct:/x\n4:memory:/a\n0::/\n"}
SYSTEMS = {
    "available, page cache included": ({}, 5000 * 1024),
    "no limit in its group": (IN_A | second("/a/b", limit="max", usage=10, cache=0), 5000 * 1024),
    "its group": (IN_A | second("/a/b", limit=1000, usage=400, cache=30), 630),
    "the group above": (
        IN_A | second("/a/b", limit=1000, usage=400, cache=0) | second("/a", limit=900, usage=800, cache=0),
        100,
    ),
    "a container that sees the mount alone": (IN_A | second("", limit=1000, usage=900, cache=5), 105),
    "a group over its limit": (IN_A | second("/a/b", limit=1000, usage=1100, cache=0), 0),
    "version 1": (IN_OLD_A | first("/a", limit=1000, usage=400, cache=20), 620),
    "version 1 without a limit": (IN_OLD_A | first("/a", limit=2**63 - 4096, usage=400, cache=20), 5000 * 1024),
}


@pytest.mark.parametrize("case", SYSTEMS)
def test_the_least_that_system_and_groups_leave(case: str, tmp_path: Path, limits: dict[int, int]) -> None:
    files, expected = SYSTEMS[case]
    assert free.left_to_process(a_system(tmp_path, files)) == expected


def test_limits_on_the_process(tmp_path: Path, limits: dict[int, int]) -> None:
    import resource

    root = a_system(tmp_path, {})
    assert free.left_by_limits(root) is None
    limits[resource.RLIMIT_AS] = 1000 * 1024
    assert free.left_by_limits(root) == free.left_to_process(root) == 300 * 1024
    limits[resource.RLIMIT_DATA] = 350 * 1024
    assert free.left_by_limits(root) == free.left_to_process(root) == 50 * 1024
    limits[resource.RLIMIT_DATA] = 200 * 1024
    assert free.left_by_limits(root) == free.left_to_process(root) == 0


def test_a_process_whose_name_is_cut_within_a_character(tmp_path: Path, limits: dict[int, int]) -> None:
    import resource

    root = a_system(tmp_path, {})
    (root / "proc/self/status").write_bytes("Name:\tpurifié".encode()[:-1] + b"\nVmSize:\t 700 kB\n")
    limits[resource.RLIMIT_AS] = 1000 * 1024
    assert free.left_by_limits(root) == 300 * 1024


def test_a_system_without_proc_says_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 30, "SC_PAGE_SIZE": 4096}.__getitem__, raising=False)
    assert free.left_to_process(tmp_path) == 30 * 4096
    assert free.left_by_limits(tmp_path) is None

    def unknown(name: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown)
    assert free.left_to_process(tmp_path) == 2**31
    monkeypatch.delattr(os, "sysconf")
    assert free.left_to_process(tmp_path) == 2**31


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of address space as in Linux")
def test_the_limit_of_this_process_counts() -> None:
    """No fakes: a limit that is set for real."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**26, limits[1]))
    try:
        left = free.left_to_process()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert 2**25 < left < 2**27
