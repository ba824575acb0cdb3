"""A whole network in the kernels against the plain reference.

It runs in the interpreter or on a GPU, as in test_kernels.
"""

from __future__ import annotations

import pytest
import torch
from reference import reference_like
from torch import Tensor

from dipdefense import DIPConfig
from dipdefense.engine.network import SkipNets
from dipdefense.modes import without_tf32

pytest.importorskip("triton")

from test_kernels import DEVICE, INTERPRETED, channels_last, runs_kernels

from dipdefense.engine.kernels import convolution, weight_gradient
from dipdefense.engine.kernels.engine import Engine
from dipdefense.engine.kernels.layout import Layout
from dipdefense.engine.kernels.tiles import Blocks


def use_large_blocks(patch: pytest.MonkeyPatch) -> None:
    """Use large blocks: the interpreter's time goes by the number of programs."""
    if INTERPRETED:
        patch.setattr(convolution, "convolution_blocks", lambda *_, **__: Blocks(16, 16, 16, 16, 4, 2))
        patch.setattr(weight_gradient, "weight_blocks", lambda *_, **__: Blocks(16, 1, 16, 256, 4, 2))


@pytest.fixture
def large_blocks(monkeypatch) -> None:
    use_large_blocks(monkeypatch)


def networks_like(config: DIPConfig, channels: int, scales: int, *, count: int) -> SkipNets:
    """Networks with every parameter moved away from its initial value."""
    generators = [torch.Generator(DEVICE).manual_seed(seed) for seed in range(count)]
    networks = SkipNets(
        config, image_channels=channels, scales=scales, generators=generators, device=torch.device(DEVICE)
    )
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return networks


def test_layout_packs_and_unpacks() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    config, cpu = DIPConfig(channels=7, skip_channels=2, input_channels=3), torch.device("cpu")
    networks = SkipNets(config, image_channels=3, scales=2, generators=generators, device=cpu)
    parameters = dict(networks.named_parameters())
    layout = Layout.of(parameters)
    unpacked = layout.unpack(layout.pack(parameters))
    assert unpacked.keys() == parameters.keys()
    for name, value in unpacked.items():
        assert torch.equal(value, parameters[name]), name


# LeakyReLU's derivative jumps: whatever computes in bf16, a value rounded across zero costs its gradient. With a slope
# near 1 the jump is small, and the test can be strict.
NETWORKS = {
    "two scales, odd": (DIPConfig(channels=7, skip_channels=2, input_channels=3), 2, (9, 6), 1, torch.float32),
    "no skip branch": (DIPConfig(channels=5, skip_channels=0, input_channels=3), 1, (3, 5), 2, torch.float32),
    "bf16": (DIPConfig(channels=16, input_channels=8, leaky_slope=0.9), 1, (10, 8), 1, torch.bfloat16),
}
PAPER = {
    "paper, fp32": (DIPConfig.paper(), 5, (224, 224), 2, torch.float32),
    "paper, odd, fp32": (DIPConfig.paper(), 5, (221, 187), 1, torch.float32),
    "paper, bf16": (DIPConfig.paper(), 5, (224, 224), 2, torch.bfloat16),
    "architecture 2, fp32": (DIPConfig.architecture_2(), 3, (32, 32), 3, torch.float32),
}
CASES = NETWORKS if INTERPRETED else NETWORKS | PAPER


def relative(result: Tensor, expected: Tensor) -> float:
    return ((result.double() - expected).norm() / expected.norm()).item()


@runs_kernels
@pytest.mark.parametrize(("config", "scales", "size", "count", "dtype"), CASES.values(), ids=CASES)
def test_network_equals_the_reference(config, scales, size, count, dtype, large_blocks) -> None:
    networks = networks_like(config, 3, scales, count=count)
    noise = torch.rand(count, config.input_channels, *size, device=DEVICE).to(dtype)
    pull = torch.randn(count, 3, *size, device=DEVICE)
    engine = Engine(dict(networks.named_parameters()), config, scales, dtype)
    output = engine.forward(channels_last(noise)).permute(0, 3, 1, 2)
    engine.backward(channels_last(pull))
    grads = engine.layout.unpack(engine.grads)
    with without_tf32():
        by_torch = networks(noise)
        (by_torch * pull).sum().backward()
    for index in range(count):
        reference = reference_like(networks, index, config, 3).double()
        expected = reference(noise[index : index + 1].double())
        (expected * pull[index : index + 1]).sum().backward()
        expected_grads = reference.live_values(lambda p: p.grad)
        whole, by_torch, by_kernels = (
            torch.cat([of(name).flatten() for name in expected_grads])
            for of in (
                expected_grads.__getitem__,
                lambda name, i=index: networks.get_parameter(name).grad[i],
                lambda name, i=index: grads[name][i],
            )
        )
        # Large networks amplify rounding; there torch's own operators in the same precision are the measure.
        value_limit, grad_limit = (1e-4, 1e-4) if dtype == torch.float32 else (1e-2, 5e-2)
        assert relative(output[index], expected[0]) < max(value_limit, 2 * relative(by_torch[index], expected[0]))
        assert relative(by_kernels, whole) < max(grad_limit, 2 * relative(by_torch, whole))
        if dtype == torch.float32 and relative(by_torch, whole) < 1e-5:
            for name, expected_grad in expected_grads.items():
                # Scales that a later normalisation all but undoes have next to no gradient.
                error = (grads[name][index] - expected_grad).norm()
                assert error <= 1e-4 * expected_grad.norm() + 1e-6 * whole.norm(), f"{name}: {error:.2e}"
