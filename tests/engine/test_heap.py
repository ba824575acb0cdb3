"""The heap keeps its memory while networks are fitted, and only then."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from dipdefense import DIPConfig, reconstruct
from dipdefense.engine import heap

_NEVER, _AGAIN = [(-3, 2**31 - 1), (-1, 2**31 - 1)], [(-3, 2**25), (-1, 2**26), "trim"]
_AT_ONCE = [(-3, 2**17), (-1, 2**17), "trim"]

# What the allocator says of a large block (glibc 2.33 and newer): its own count is used and not the system's page
# faults or resident memory, which not every container reports.
_HELD = """
import contextlib, ctypes, torch
from dipdefense.engine import heap

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info

def mapped():  # whether a large block gets a mapping of its own, which goes as soon as it is freed
    before = libc.mallinfo2().hblkhd
    block = torch.empty(25_000_000)
    return libc.mallinfo2().hblkhd - before > 90e6

"""
_PROBE = """
outside = mapped()
with heap.kept():
    inside = mapped()
    kept = libc.mallinfo2().fordblks > 90e6  # the block is free, and still the process's
print(outside, inside, kept, mapped())
"""

# The same in processes forked while a thread keeps the heap, and while another changes how it behaves.
_FORK = """
import os, signal, threading

def in_child(occupied):
    with occupied:
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            with heap.kept():
                inside = mapped()
            print(inside, mapped(), flush=True)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0

@contextlib.contextmanager
def in_thread(block):
    entered, leave = threading.Event(), threading.Event()
    def occupy():
        with block:
            entered.set()
            leave.wait()
    thread = threading.Thread(target=occupy, daemon=True)
    thread.start()
    entered.wait()
    yield
    leave.set()
    thread.join()

in_child(in_thread(heap.kept()))
in_child(in_thread(heap._heap.lock))
in_child(heap.kept())
print(heap._heap.mode, heap._heap.users)
"""


needs_mallinfo = pytest.mark.skipif(not hasattr(heap._glibc(), "mallinfo2"), reason="needs glibc 2.33 or newer")


class FakeLibc:
    """Notes down what it is told, but for the thresholds that it refuses."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.largest = 2**31 - 1

    def mallopt(self, parameter: int, value: int) -> int:
        if parameter == -3 and value > self.largest:
            return 0
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


def test_a_glibc_that_refuses_large_thresholds_gets_the_largest_that_it_takes(libc: FakeLibc) -> None:
    libc.largest = 2**25
    with heap.kept():
        assert libc.calls == [(-3, 2**25), (-1, 2**31 - 1)]


def test_the_last_of_several_fits_puts_them_back(libc: FakeLibc) -> None:
    with heap.kept(), heap.kept():
        pass
    assert libc.calls == _NEVER + _AGAIN


def test_to_give_back_outranks_to_keep(libc: FakeLibc) -> None:
    with heap.kept():
        with heap.released(), heap.kept():
            assert libc.calls == _NEVER + _AT_ONCE
        assert libc.calls == _NEVER + _AT_ONCE + _NEVER
    assert libc.calls == _NEVER + _AT_ONCE + _NEVER + _AGAIN


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


def held(code: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name not in heap._VARIABLES}
    run = subprocess.run(
        [sys.executable, "-c", _HELD + code], capture_output=True, text=True, check=True, env=environment
    )
    return run.stdout.splitlines()


@needs_mallinfo
def test_freed_memory_stays_with_the_process_inside_and_is_given_back_afterwards() -> None:
    assert held(_PROBE) == ["True False True True"]


@needs_mallinfo
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_inherits_neither_users_nor_a_lock() -> None:
    *children, parent = held(_FORK)
    assert children == ["False True"] * 3
    assert parent == "ordinary {'released': 0, 'kept': 0}"


def test_a_fit_on_a_cpu_keeps_the_heap(libc: FakeLibc) -> None:
    seen: list[object] = []
    reconstruct(
        torch.rand(1, 3, 32, 32), budgets=(1,), config=DIPConfig.architecture_2(), seed=0,
        on_iteration=lambda: seen.extend(libc.calls),
    )  # fmt: skip
    assert seen == _NEVER
    assert libc.calls == _NEVER + _AGAIN
