"""Cached constants, and those that a captured graph needs."""

from __future__ import annotations

import gc
import threading
import weakref

import torch
from torch import Tensor

from dipdefense.engine import graphs
from dipdefense.engine.constants import collected, constant


def made() -> tuple[list[int], object]:
    calls: list[int] = []

    @constant
    def ones(size: int) -> Tensor:
        calls.append(size)
        return torch.ones(size)

    return calls, ones


def test_a_constant_is_made_once_and_dropped_for_others() -> None:
    calls, ones = made()
    assert ones(3) is ones(3)
    assert calls == [3]
    for size in range(10, 90):
        ones(size)
    ones(3)
    assert calls.count(3) == 2


def test_what_was_used_meanwhile_in_any_thread_is_held() -> None:
    _, ones = made()
    first = weakref.ref(ones(1))
    with collected() as outer, collected() as inner:
        ones(2)
        thread = threading.Thread(target=ones, args=(3,))
        thread.start()
        thread.join()
    held = weakref.ref(outer[0])
    for size in range(10, 90):
        ones(size)
    gc.collect()
    assert first() is None
    assert held() is not None
    assert [len(each) for each in outer] == [len(each) for each in inner] == [2, 3]


def test_a_captured_graph_holds_its_constants(monkeypatch) -> None:
    _, ones = made()
    monkeypatch.setattr(graphs, "_stream", lambda device: None)
    monkeypatch.setattr(graphs, "_apart", lambda step, stream: step())
    monkeypatch.setattr(graphs, "_captured", lambda step, stream: (step(), step)[1])
    replayed = graphs.Replayed(lambda: ones(5), torch.device("cpu"))
    for _ in range(3):
        replayed()
    held = weakref.ref(ones(5))
    for size in range(10, 90):
        ones(size)
    gc.collect()
    assert held() is not None
    del replayed
    gc.collect()
    assert held() is None
