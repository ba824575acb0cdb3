"""Iterations replayed from a CUDA graph: on a CPU all but the graph, on a GPU the graph too."""

from __future__ import annotations

import contextlib

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
    """Each does the step once, and capturing does not. (What a capture itself does needs a GPU.)"""
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
    torch.testing.assert_close(captured.losses[-20:].mean(0), plain.losses[-20:].mean(0), rtol=0.2, atol=0)
    assert captured.losses[-1].mean() < 0.5 * captured.losses[2].mean()
