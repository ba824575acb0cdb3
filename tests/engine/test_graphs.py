"""Iterations replayed from a CUDA graph; on a CPU, everything but the graph."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from test_reconstruct import CLOSE
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dipdefense import DIPConfig, reconstruct
from dipdefense.checks import check_request
from dipdefense.engine import graphs, trial, upsampling
from dipdefense.engine.fitting import surroundings

# What waits for the GPU, or copies from the host, or makes tensors as large as their input's contents say.
REFUSED = {
    "lift_fresh", "_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "unique", "_unique2",
    "repeat_interleave",
}  # fmt: skip


@pytest.mark.parametrize(("calls", "expected"), [(2, "aa"), (5, "aacrrr")])
def test_the_first_calls_are_the_warm_up(calls: int, expected: str, monkeypatch) -> None:
    """Each does the step once, and capturing does not; a real capture needs a GPU."""
    log, done = [], []

    def captured(step, stream):
        log.append("c")
        return lambda: (log.append("r"), step())

    monkeypatch.setattr(graphs, "_stream", lambda device: "stream")
    monkeypatch.setattr(graphs, "_apart", lambda step, stream: (log.append("a"), step()))
    monkeypatch.setattr(graphs, "_captured", captured)
    replayed = graphs.Replayed(lambda: done.append(len(done)), torch.device("cpu"))
    for _ in range(calls):
        replayed()
    assert "".join(log) == expected
    assert done == list(range(calls))


class Streams:
    """Stands for torch.cuda: a current stream and a capture that may fail as it ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
        self.current, self.waited = "caller's", []

        @contextlib.contextmanager
        def graph(_, stream, capture_error_mode):
            self.current = stream
            yield
            if fails:
                # As torch does, which then leaves its own stream current.
                raise RuntimeError("operation failed due to a previous error during capture")
            self.current = "caller's"

        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay="replay"))
        monkeypatch.setattr(torch.cuda, "graph", graph)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "current", stream))


def test_a_capture_collects_no_garbage(monkeypatch) -> None:
    streams, seen = Streams(monkeypatch), []
    assert graphs._captured(lambda: seen.append((gc.isenabled(), streams.current)), "own") == "replay"
    assert seen == [(False, "own")]
    assert (gc.isenabled(), streams.current) == (True, "caller's")


def test_a_capture_that_fails_leaves_the_callers_stream(monkeypatch) -> None:
    streams = Streams(monkeypatch, fails=True)
    with pytest.raises(RuntimeError, match="previous error during capture") as failed:
        graphs._captured(lambda: None, "own")
    assert (gc.isenabled(), streams.current) == (True, "caller's")
    assert "start another process" in failed.value.__notes__[0]


def test_a_warm_up_that_fails_is_waited_for(monkeypatch) -> None:
    waited = []
    current, own = (
        SimpleNamespace(wait_stream=lambda other, name=name: waited.append(name)) for name in ("current", "own")
    )
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    with pytest.raises(ZeroDivisionError):
        graphs._apart(lambda: 1 // 0, own)
    assert waited == ["own", "current"]


def test_threads_capture_one_after_another(monkeypatch) -> None:
    """And no other thread waits for the whole GPU meanwhile."""
    order, inside = [], threading.Event()

    def captured(step, stream):
        inside.set()
        time.sleep(0.2)
        order.append("captured")
        return lambda: None

    monkeypatch.setattr(graphs, "_stream", lambda device: "stream")
    monkeypatch.setattr(graphs, "_apart", lambda step, stream: None)
    monkeypatch.setattr(graphs, "_captured", captured)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append("waited"))
    replayed = graphs.Replayed(lambda: None, torch.device("cuda"))
    thread = threading.Thread(target=lambda: [replayed() for _ in range(3)])
    thread.start()
    assert inside.wait(10)
    trial.clock(torch.device("cuda"))
    thread.join()
    assert order == ["captured", "waited"]


@pytest.fixture
def uncaptured(monkeypatch) -> None:
    """The backend on a CPU, and every call as it is."""
    monkeypatch.setattr("dipdefense.checks.check_backend", lambda *_: None)
    monkeypatch.setattr(graphs, "Replayed", lambda step, device: step)


def test_without_the_graph_it_is_the_torch_backend(uncaptured, tiny: DIPConfig) -> None:
    images = torch.rand(2, 3, 33, 40)
    own, plain = (
        reconstruct(images, budgets=(1, 4), config=tiny, seed=[5, 6], backend=backend)
        for backend in ("cudagraphs", "torch")
    )
    assert torch.equal(own.losses, plain.losses)
    assert torch.equal(own.images, plain.images)


def test_without_the_graph_it_passes_its_trial(uncaptured, tiny: DIPConfig) -> None:
    images = torch.rand(2, 3, 17, 20)
    request = check_request(images, budgets=(9,), config=tiny, seed=0, precision="fp32", backend="cudagraphs")
    assert trial.prove(request, "cudagraphs") > 0


class Operators(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("products", [True, False], ids=["products", "transposed"])
@pytest.mark.parametrize(
    "config", [DIPConfig.compact(), DIPConfig(scales=2, skip_channels=0)], ids=["compact", "no skips"]
)
def test_what_is_captured_neither_waits_nor_copies_from_the_host(
    config: DIPConfig, products: bool, uncaptured, monkeypatch
) -> None:
    calls = []

    def watched(step, device):
        def run() -> None:
            calls.append(Operators())
            with calls[-1]:
                step()

        return run

    monkeypatch.setattr(graphs, "Replayed", watched)
    monkeypatch.setattr(upsampling, "_favours_products", lambda low: products)
    reconstruct(torch.rand(2, 3, 64, 75), budgets=(3,), config=config, seed=0, precision="bf16", backend="cudagraphs")
    # The third is the one that is captured.
    assert {"_fused_adam_", "bmm", "convolution_backward", "sigmoid_backward"} <= calls[2].names
    assert calls[2].names & REFUSED == set()


@pytest.fixture
def pictures() -> Tensor:
    """Smooth ones, with a little noise."""
    coarse = torch.rand(3, 3, 6, 7, device="cuda")
    smooth = torch.nn.functional.interpolate(coarse, size=(64, 70), mode="bicubic")
    return (smooth + 0.02 * torch.randn_like(smooth)).clamp(0, 1)


# On a GPU the gradient of a padding is summed in no fixed order, and the optimisation is chaotic. Two runs with one
# seed are equal in the first iteration alone; hence the trial, which repeats single iterations.
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "stream",
    [contextlib.nullcontext, lambda: torch.cuda.stream(torch.cuda.Stream())],
    ids=["the current stream", "another stream"],
)
def test_captured_iterations_are_the_torch_backends(precision: str, stream, pictures: Tensor) -> None:
    config = DIPConfig(channels=32)
    request = check_request(pictures, budgets=(9,), config=config, seed=0, precision=precision, backend="cudagraphs")
    with stream(), surroundings(pictures.device):
        assert trial.prove(request, "cudagraphs") > 0


@pytest.mark.gpu
def test_a_captured_fit_learns_as_the_torch_backend_does(pictures: Tensor) -> None:
    options = {"config": DIPConfig(channels=32), "seed": [1, 2, 3]}
    captured, plain = (
        reconstruct(pictures, budgets=(1, 60), backend=backend, **options) for backend in ("cudagraphs", "torch")
    )
    torch.testing.assert_close(captured.images[0], plain.images[0], **CLOSE)
    # Two runs of one backend are as far apart, image by image.
    torch.testing.assert_close(captured.losses[-20:].mean(), plain.losses[-20:].mean(), rtol=0.5, atol=0)
    assert captured.losses[-1].mean() < 0.5 * captured.losses[2].mean()
