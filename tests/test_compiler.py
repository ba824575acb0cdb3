"""torch.compile leaves the fit alone; tracing and export say what to do instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from dipdefense import DIPConfig, DIPPurifier, reconstruct
from dipdefense.randomization import RandomizationDefence, RandomResizePad


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32)


def classifier() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


class Defended(nn.Module):
    def __init__(self, purifier: DIPPurifier) -> None:
        super().__init__()
        self.purifier, self.classifier = purifier, classifier()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.purifier(images))


class Counted:
    """A compiler's backend that refuses more graphs than surround the purifier."""

    def __init__(self, backend: str, *, most: int) -> None:
        self.graphs: list[set[object]] = []
        self._inner, self._most = torch._dynamo.lookup_backend(backend), most

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        self.graphs.append({node.target for node in graph.graph.nodes if node.op == "call_function"})
        assert len(self.graphs) <= self._most, "the compiler looks into the fit"
        return self._inner(graph, inputs)


def assert_compiles(model: nn.Module, images: torch.Tensor, backend: Counted) -> None:
    """The same outputs and gradients."""
    compiled, outcomes = torch.compile(model, backend=backend), []
    for call in (model, compiled, compiled):
        leaf = images.clone().requires_grad_()
        output = call(leaf)
        (gradient,) = torch.autograd.grad(output.logsumexp(dim=1).sum(), leaf)
        outcomes.append((output, gradient))
    for output, gradient in outcomes[1:]:
        torch.testing.assert_close(output, outcomes[0][0])
        torch.testing.assert_close(gradient, outcomes[0][1])
    assert torch.equal(outcomes[1][0], outcomes[2][0])


BACKENDS = pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])


@BACKENDS
def test_a_defended_sequential_compiles(tiny: DIPConfig, images: torch.Tensor, backend: str) -> None:
    model = nn.Sequential(DIPPurifier(50, config=tiny, seed=0), classifier())
    assert_compiles(model, images, Counted(backend, most=1))


@BACKENDS
def test_what_stands_around_it_is_compiled(tiny: DIPConfig, images: torch.Tensor, backend: str) -> None:
    counted = Counted(backend, most=1)
    assert_compiles(Defended(DIPPurifier(50, config=tiny, seed=0)), images, counted)
    assert len(counted.graphs) == 1
    assert torch.conv2d in counted.graphs[0]


def test_the_function_and_the_method_are_left_alone_too(tiny: DIPConfig, images: torch.Tensor) -> None:
    purifier = DIPPurifier(50, config=tiny, seed=0)
    for call in (
        lambda: reconstruct(images, budgets=(50,), config=tiny, seed=0).images,
        lambda: purifier.reconstruct(images, budgets=(50,)).images,
    ):
        assert torch.equal(torch.compile(call, backend=Counted("eager", most=0))(), call())


@pytest.mark.parametrize("layer", [RandomResizePad(seed=1), RandomizationDefence(classifier(), passes=2, seed=1)])
def test_the_randomisation_compiles(layer: nn.Module, images: torch.Tensor) -> None:
    torch.testing.assert_close(torch.compile(layer, backend="eager")(images), layer(images))


EXPORTS = {
    "jit.trace": lambda model, images: torch.jit.trace(model, (images,)),
    "export": lambda model, images: torch.export.export(model, (images,)),
    "onnx": lambda model, images: torch.onnx.export(model, (images,), "/dev/null", dynamo=False),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("export", EXPORTS.values(), ids=EXPORTS)
@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (DIPPurifier(1, config=DIPConfig(scales=2, channels=4)), "DIPPurifier"),
        (RandomResizePad(), "RandomResizePad"),
        (RandomizationDefence(classifier(), passes=2), "RandomizationDefence"),
    ],
    ids=["dip", "randomisation", "averaged"],
)
def test_tracing_and_export_say_what_to_export(layer: nn.Module, name: str, export, images: torch.Tensor) -> None:
    with pytest.raises(RuntimeError, match=f"{name} cannot be traced or exported: .* Export the classifier alone"):
        export(nn.Sequential(layer, nn.Identity()), images)


def test_strict_export_says_it_too(tiny: DIPConfig, images: torch.Tensor) -> None:
    with pytest.raises(Exception, match="export the classifier alone"):
        torch.export.export(nn.Sequential(DIPPurifier(1, config=tiny)), (images,), strict=True)
