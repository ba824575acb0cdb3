"""Running out of memory is recognised or foreseen; then fewer images are fitted."""

from __future__ import annotations

import errno
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from test_heap import _AGAIN, _AT_ONCE, _NEVER, FakeLibc

from dipdefense.engine import free, heap
from dipdefense.engine.memory import in_chunks, is_out_of_memory

CPU = torch.device("cpu")
MIB = 2**20

OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 524288 bytes."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 524288 bytes."),
    RuntimeError("std::bad_alloc"),
    RuntimeError("could not create a primitive"),
    RuntimeError("could not create a primitive descriptor for the convolution forward propagation primitive."),
    RuntimeError("could not create a memory object"),
    RuntimeError("could not execute a primitive"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
]
OTHERS = [
    RuntimeError("shapes do not fit"),
    ValueError("could not create a primitive"),
    OSError(errno.ENOENT, "No such file"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_every_allocators_words_are_recognised(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_other_errors_are_not(error: BaseException) -> None:
    assert not is_out_of_memory(error)


@pytest.fixture
def onednn() -> Iterator[None]:
    before = torch.backends.mkldnn.enabled
    yield
    torch.backends.mkldnn.enabled = before


def failing_above(most: int, sizes: list[int]) -> Callable[[slice, Callable[[], None]], list[int]]:
    """Fits that find memory for ``most`` images, and return which images those were."""

    def fit(part: slice, iterated: Callable[[], None]) -> list[int]:
        sizes.append(part.stop - part.start)
        if sizes[-1] > most:
            raise MemoryError
        iterated()
        return list(range(part.start, part.stop))

    return fit


@pytest.mark.parametrize(
    ("count", "chunk", "most", "sizes"),
    [
        (5, 8, 9, [5]),
        (5, 2, 9, [2, 2, 1]),
        (7, 7, 2, [7, 3, 1, 1, 1, 1, 1, 1, 1]),
        (12, 8, 4, [8, 4, 4, 4]),
        (0, 4, 9, [0]),
    ],
)
def test_every_image_is_fitted_once(count: int, chunk: int, most: int, sizes: list[int]) -> None:
    tried: list[int] = []
    parts = in_chunks(failing_above(most, tried), count, chunk, device=CPU, each=1)
    assert tried == sizes
    assert [index for part in parts for index in part] == list(range(count))


def test_nothing_of_the_failed_attempt_is_alive_at_the_next() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def fit(part: slice, iterated: Callable[[], None]) -> int:
        assert not any(reference() is not None for reference in alive)
        weight = torch.ones(1, requires_grad=True)
        graph = (weight * 2).exp()
        cycle: list[object] = [graph]
        cycle.append(cycle)
        if part.stop - part.start > 1:
            alive.extend(map(weakref.ref, (weight, graph)))
            raise MemoryError
        return 0

    assert in_chunks(fit, 4, 4, device=CPU, each=1) == [0] * 4
    assert len(alive) == 4


@pytest.mark.usefixtures("onednn")
def test_the_error_for_one_image_is_its_own_with_a_note() -> None:
    error = RuntimeError("could not create a primitive")
    torch.backends.mkldnn.enabled = False
    tried: list[int] = []

    def fit(part: slice, iterated: Callable[[], None]) -> None:
        tried.append(part.stop - part.start)
        raise error

    with pytest.raises(RuntimeError) as caught:
        in_chunks(fit, 6, 6, device=CPU, each=50 * MIB)
    assert caught.value is error
    assert tried == [6, 3, 1]
    (note,) = error.__notes__
    assert "with 6, 3, 1 images" in note
    assert "50 MiB" in note


def test_another_error_passes_at_once_and_unchanged() -> None:
    def fit(part: slice, iterated: Callable[[], None]) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes") as caught:
        in_chunks(fit, 6, 6, device=CPU, each=1)
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.usefixtures("onednn")
def test_onednn_is_switched_off_where_it_fails_and_a_single_image_tried_again() -> None:
    torch.backends.mkldnn.enabled = True
    tried: list[int] = []

    def fit(part: slice, iterated: Callable[[], None]) -> None:
        tried.append(part.stop - part.start)
        if torch.backends.mkldnn.enabled:
            raise RuntimeError("could not create a primitive")

    with pytest.warns(RuntimeWarning, match=r"torch\.backends\.mkldnn\.enabled = True"):
        in_chunks(fit, 1, 1, device=CPU, each=1)
    assert tried == [1, 1]


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> FakeLibc:
    fake = FakeLibc()
    monkeypatch.setattr(heap, "_glibc", lambda: fake)
    for name in heap._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return fake


def test_the_heap_is_kept_from_the_second_iteration_on(libc: FakeLibc) -> None:
    def fit(part: slice, iterated: Callable[[], None]) -> None:
        with heap.kept():
            assert libc.calls == _AT_ONCE
            iterated()
            assert libc.calls == _AT_ONCE + _NEVER
            iterated()

    in_chunks(fit, 1, 1, device=CPU, each=1)
    assert libc.calls == _AT_ONCE + _NEVER + _AGAIN


def test_once_memory_has_run_out_the_heap_is_kept_no_more(libc: FakeLibc) -> None:
    def fit(part: slice, iterated: Callable[[], None]) -> None:
        with heap.kept():
            if part.stop - part.start == 2:
                iterated()
                raise MemoryError
            assert heap._heap.mode == "released"
            iterated()
            assert heap._heap.mode == "released"

    in_chunks(fit, 2, 2, device=CPU, each=1)
    assert libc.calls[-3:] == _AGAIN


def test_a_limit_on_address_space_makes_chunks_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(left: int | None) -> int:
        monkeypatch.setattr(free, "left_by_limits", lambda: left)
        sizes: list[int] = []
        in_chunks(failing_above(99, sizes), 32, 32, device=CPU, each=10 * MIB)
        return sizes[0]

    # 0.7 of what is left, less 32 MiB for oneDNN's code, by 10 MiB an image.
    assert [first(left) for left in (None, 2000 * MIB, 200 * MIB, 50 * MIB, 0)] == [32, 32, 10, 1, 1]
