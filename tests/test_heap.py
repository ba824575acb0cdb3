"""The heap keeps its memory while networks are fitted, and only then."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dipdefense import DIPConfig, heap, reconstruct

_GLIBC = heap._glibc() is not None
_NEVER, _AGAIN = [(-3, 2**31 - 1), (-1, 2**31 - 1)], [(-3, 2**25), (-1, 2**26), "trim"]

# Page faults of four turns of allocating, writing and freeing 24 MB twice, outside and inside; the resident memory that
# is left afterwards.
_PROBE = """
import contextlib, resource, torch
from pathlib import Path
from dipdefense import heap

def faults(block):
    with block:
        for turn in range(6):
            if turn == 2:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            kept = [torch.ones(6_000_000) for _ in range(2)]
            del kept
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

faults(contextlib.nullcontext())
before = resident()
print(faults(contextlib.nullcontext()), faults(heap.kept()), resident() - before)
"""


class FakeLibc:
    """Notes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def mallopt(self, parameter: int, value: int) -> int:
        self.calls.append((parameter, value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.calls.append("trim")
        return 1


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> FakeLibc:
    fake = FakeLibc()
    monkeypatch.setattr(heap, "_glibc", lambda: fake)
    for name in heap._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return fake


def test_thresholds_are_raised_for_the_block_and_put_back_whatever_happens(libc: FakeLibc) -> None:
    with heap.kept():
        assert libc.calls == _NEVER
    assert libc.calls == _NEVER + _AGAIN
    libc.calls.clear()
    with pytest.raises(KeyError), heap.kept():
        raise KeyError
    assert libc.calls == _NEVER + _AGAIN


def test_the_last_of_several_fits_puts_them_back(libc: FakeLibc) -> None:
    with heap.kept(), heap.kept():
        pass
    assert libc.calls == _NEVER * 2 + _AGAIN


@pytest.mark.parametrize("name", heap._VARIABLES)
def test_thresholds_set_from_outside_are_left_alone(name: str, libc: FakeLibc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "65536")
    with heap.kept():
        pass
    assert libc.calls == []


@pytest.mark.parametrize("found", [OSError, TypeError, lambda name: object()], ids=["none", "Windows", "not glibc"])
def test_another_c_library_is_left_alone(found: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_library(name: None) -> object:
        if isinstance(found, type):
            raise found
        return found(name)  # type: ignore[operator]

    monkeypatch.setattr("ctypes.CDLL", open_library)
    with heap.kept():
        pass


@pytest.mark.skipif(not _GLIBC, reason="needs glibc")
def test_freed_memory_is_used_again_inside_and_given_back_afterwards() -> None:
    run = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=True)
    outside, inside, left_mb = (float(number) for number in run.stdout.split())
    assert outside > 10_000
    assert inside < 100
    assert left_mb < 10


def test_a_fit_on_a_cpu_keeps_the_heap(libc: FakeLibc) -> None:
    seen: list[object] = []
    reconstruct(
        torch.rand(1, 3, 32, 32), budgets=(1,), config=DIPConfig.architecture_2(), seed=0,
        on_iteration=lambda: seen.extend(libc.calls),
    )  # fmt: skip
    assert seen == _NEVER
    assert libc.calls == _NEVER + _AGAIN
