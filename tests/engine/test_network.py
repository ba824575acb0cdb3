"""The batched network has the plain reference's outputs, gradients and updates."""

from __future__ import annotations

import pytest
import torch
from reference import ReferenceNet, reference_like

from dipdefense import DIPConfig
from dipdefense.engine import ops, upsampling
from dipdefense.engine.network import SkipNets

SMALL = DIPConfig(channels=8, skip_channels=4, input_channels=5)
CASES = {
    "five scales, even": (SMALL, 3, 5, (64, 64)),
    "five scales, odd": (SMALL, 3, 5, (67, 81)),
    "large, even": (SMALL, 3, 3, (96, 96)),
    "large, odd": (SMALL, 3, 2, (99, 97)),
    "large, odd and even": (SMALL, 3, 1, (97, 96)),
    "four scales at 32": (SMALL, 3, 4, (32, 32)),
    "three scales, odd and tall": (SMALL, 1, 3, (45, 32)),
    "one scale": (SMALL, 4, 1, (32, 33)),
    "coarsest map of 2 pixels": (SMALL, 3, 3, (9, 12)),
    "no skip branches": (DIPConfig(channels=8, skip_channels=0, input_channels=5), 3, 3, (33, 32)),
    "one skip channel": (DIPConfig(channels=7, skip_channels=1, input_channels=3), 3, 2, (18, 21)),
}


def batched(config: DIPConfig, channels: int, scales: int, *, count: int = 3) -> SkipNets:
    """Networks in float64 with every parameter moved away from its initial value."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    networks = SkipNets(
        config,
        image_channels=channels,
        scales=scales,
        generators=generators,
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return networks


@pytest.mark.parametrize(
    ("count", "layout"),
    [(1, torch.contiguous_format), (1, torch.channels_last), (3, torch.contiguous_format)],
    ids=["alone", "alone, channels innermost", "in a batch"],
)
@pytest.mark.parametrize(("config", "channels", "scales", "size"), CASES.values(), ids=CASES)
def test_outputs_and_gradients_equal_the_reference(config, channels, scales, size, count, layout) -> None:
    networks = batched(config, channels, scales, count=count)
    noise = torch.rand(count, config.input_channels, *size, dtype=torch.float64).contiguous(memory_format=layout)
    pull = torch.randn(count, channels, *size, dtype=torch.float64)
    output = networks(noise)
    (output * pull).sum().backward()
    for index in range(count):
        reference = reference_like(networks, index, config, channels)
        expected = reference(noise[index : index + 1])
        (expected * pull[index : index + 1]).sum().backward()
        torch.testing.assert_close(output[index], expected[0], rtol=0, atol=1e-11)
        for name, expected_grad in reference.live_values(lambda p: p.grad).items():
            own = networks.get_parameter(name).grad[index]
            torch.testing.assert_close(own, expected_grad, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("inputs", "outputs", "kernel"), [(32, 4, 1), (4, 32, 3)], ids=["few out", "few in"])
def test_one_image_keeps_its_channels_innermost(inputs: int, outputs: int, kernel: int) -> None:
    """Tensors of many channels keep every stride, that of the image axis included.

    By the strides torch chooses its slow paths.
    """
    wide = torch.rand(1, 32, 20, 22).contiguous(memory_format=torch.channels_last).requires_grad_()
    narrow = torch.rand(1, 4, 20, 22, requires_grad=True)
    x, addend = (wide, None) if kernel == 1 else (narrow, wide)
    strides = {}
    wide.register_hook(lambda grad: strides.update(backward=grad.stride()))
    out = ops.convolution(x, torch.rand(1, outputs, inputs, kernel, kernel), addend=addend)
    (out * torch.rand_like(out)).sum().backward()
    assert strides["backward"] == wide.stride()
    assert out.stride() == (narrow if kernel == 1 else wide).stride()


@pytest.mark.parametrize(("side", "ring"), [((3, 7), 1), ((2, 2), 1), ((3, 8), 2), ((9, 5), 2)])
def test_a_reflections_gradient_in_order_is_torchs(side: tuple[int, int], ring: int) -> None:
    images = torch.rand(2, 3, *side, dtype=torch.float64, requires_grad=True)
    padded = torch.nn.functional.pad(images, (ring,) * 4, mode="reflect")
    grad = torch.rand_like(padded)
    (expected,) = torch.autograd.grad(padded, images, grad)
    own = ops._Reflected.apply(images, ring)
    assert torch.equal(own, padded)
    torch.testing.assert_close(torch.autograd.grad(own, images, grad)[0], expected)
    assert torch.autograd.gradgradcheck(lambda x: ops._Reflected.apply(x, ring), (images,))


def test_parameters_without_effect_have_no_gradient() -> None:
    networks = batched(SMALL, 3, 3)
    reference = reference_like(networks, 0, SMALL, 3)
    (reference(torch.rand(1, 5, 32, 32, dtype=torch.float64)) * torch.randn(1, 3, 32, 32)).sum().backward()
    dead = reference.dead_parameters()
    assert len(dead) == 3 * (5 + 1)
    assert max(p.grad.abs().max().item() for p in dead) < 1e-11


@pytest.mark.parametrize("name", ["merge0_scale", "up0_weight", "up_skip1_weight", "same2_weight", "output_bias"])
def test_first_ten_updates_equal_the_reference(name: str) -> None:
    networks = batched(SMALL, 3, 3)
    references = [reference_like(networks, index, SMALL, 3) for index in range(3)]
    target = torch.rand(3, 3, 32, 35, dtype=torch.float64)
    noise = torch.rand(10, 3, 5, 32, 35, dtype=torch.float64)
    optimiser = torch.optim.Adam(networks.parameters(), lr=0.01)
    plain = [torch.optim.Adam(reference.parameters(), lr=0.01) for reference in references]
    for step in range(10):
        optimiser.zero_grad()
        (networks(noise[step]) - target).square().mean(dim=(1, 2, 3)).sum().backward()
        optimiser.step()
        for index, (reference, own) in enumerate(zip(references, plain, strict=True)):
            own.zero_grad()
            (reference(noise[step, index : index + 1]) - target[index]).square().mean().backward()
            own.step()
    for index, reference in enumerate(references):
        moved = networks.get_parameter(name)[index]
        torch.testing.assert_close(moved, reference.live_values()[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("config", "size", "published", "dead"),
    [
        (DIPConfig.paper(), 224, 2_217_831, 3_240),
        (DIPConfig.architecture_1(), 32, 1_286_463, 1_944),
        (DIPConfig.architecture_2(), 32, 26_575, 264),
        (DIPConfig(), 64, 2_217_831, 3_240),
        (DIPConfig(), 63, 1_286_463, 1_944),
    ],
    ids=["paper", "architecture 1", "architecture 2", "automatic at 64", "automatic at 63"],
)
def test_parameter_counts(config: DIPConfig, size: int, published: int, dead: int) -> None:
    scales = config.scales_for(size, size)
    assert config.parameter_count(image_channels=3, scales=scales) == published
    assert sum(p.numel() for p in ReferenceNet(config, 3, scales).parameters()) == published
    networks = SkipNets(
        config, image_channels=3, scales=scales, generators=[torch.Generator()], device=torch.device("cpu")
    )
    assert sum(p.numel() for p in networks.parameters()) == published - dead


def test_networks_start_as_torch_layers_do() -> None:
    networks = SkipNets(
        DIPConfig.architecture_1(),
        image_channels=3,
        scales=3,
        generators=[torch.Generator().manual_seed(s) for s in (1, 2)],
        device=torch.device("cpu"),
    )
    reference = ReferenceNet(DIPConfig.architecture_1(), 3, 3).live_values()
    for name, parameter in networks.named_parameters():
        assert parameter.shape[1:] == reference[name].shape
        if name.endswith("weight"):
            assert not torch.equal(parameter[0], parameter[1])
            torch.testing.assert_close(parameter.std(), reference[name].std(), rtol=0.1, atol=0)
            torch.testing.assert_close(parameter.abs().max(), reference[name].abs().max(), rtol=0.1, atol=0)
        elif name == "output_bias":
            assert 0 < parameter.abs().max() < 1 / 128**0.5
        else:
            assert torch.equal(parameter[0], reference[name])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("size", [(98, 100), (97, 99)], ids=str)
def test_upsampled_convolution_keeps_the_layout(size: tuple[int, int], layout: torch.memory_format) -> None:
    """At odd sides too, where it crops."""
    low = torch.rand(1, 4, 49, 50).contiguous(memory_format=layout)
    out = upsampling.convolve(low, torch.rand(1, 4, 3, 5, 3), *size)
    assert out.shape == (1, 5, *size)
    assert out.is_contiguous(memory_format=layout)
