"""Variants against a plain network: outputs, gradients, updates, invariances."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn
from variant_reference import VariantNet, variant_like

from dipdefense import DIPConfig, DIPPurifier, reconstruct
from dipdefense.engine import backends
from dipdefense.engine.fitting import Fitting
from dipdefense.engine.memory import bytes_per_image
from dipdefense.engine.network import SkipNets
from dipdefense.engine.variants import VariantNets

SMALL = DIPConfig(channels=6, skip_channels=3, input_channels=4)
VARIANTS = {
    "5×5": {"kernel_size": 5},
    "average": {"downsampling": "average"},
    "max": {"downsampling": "max"},
    "Lanczos, 2": {"downsampling": "lanczos2"},
    "Lanczos, 3": {"downsampling": "lanczos3"},
    "nearest": {"upsampling": "nearest"},
    "swish": {"activation": "swish"},
    "ELU": {"activation": "elu"},
    "linear": {"activation": "none"},
    "no 1×1": {"pointwise": False},
    "no skips": {"skip_channels": 0, "upsampling": "nearest"},
    "several": {"kernel_size": 5, "downsampling": "max", "activation": "elu", "pointwise": False, "leaky_slope": 0},
}
BY_PIXELS = pytest.mark.parametrize(("scales", "size"), [(2, (16, 16)), (2, (13, 18)), (1, (5, 7))], ids=str)
EVERY = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def batched(config: DIPConfig, scales: int, *, count: int) -> VariantNets:
    """Networks in float64 with every parameter moved away from its initial value."""
    networks = VariantNets(
        config,
        image_channels=3,
        scales=scales,
        generators=[torch.Generator().manual_seed(seed) for seed in range(count)],
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return networks


@EVERY
@BY_PIXELS
@pytest.mark.parametrize(
    ("count", "layout"),
    [(1, torch.contiguous_format), (1, torch.channels_last), (3, torch.contiguous_format)],
    ids=["alone", "alone, channels innermost", "in a batch"],
)
def test_outputs_and_gradients_equal_the_reference(changes: dict, scales: int, size, count: int, layout) -> None:
    config = dataclasses.replace(SMALL, **changes)
    networks = batched(config, scales, count=count)
    noise = torch.rand(count, config.input_channels, *size, dtype=torch.float64).contiguous(memory_format=layout)
    pull = torch.randn(count, 3, *size, dtype=torch.float64)
    output = networks(noise)
    (output * pull).sum().backward()
    for index in range(count):
        reference = variant_like(networks, index, config, 3)
        expected = reference(noise[index : index + 1])
        (expected * pull[index : index + 1]).sum().backward()
        torch.testing.assert_close(output[index], expected[0], rtol=0, atol=1e-11)
        for name, expected_grad in reference.live_values(lambda p: p.grad).items():
            own = networks.get_parameter(name).grad[index]
            torch.testing.assert_close(own, expected_grad, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@EVERY
def test_first_updates_equal_the_reference(changes: dict) -> None:
    config = dataclasses.replace(SMALL, **changes)
    networks = batched(config, 2, count=2)
    references = [variant_like(networks, index, config, 3) for index in range(2)]
    target = torch.rand(2, 3, 15, 16, dtype=torch.float64)
    noise = torch.rand(4, 2, 4, 15, 16, dtype=torch.float64)
    optimiser = torch.optim.Adam(networks.parameters(), lr=0.01)
    plain = [torch.optim.Adam(reference.parameters(), lr=0.01) for reference in references]
    for fresh in noise:
        optimiser.zero_grad()
        (networks(fresh) - target).square().mean(dim=(1, 2, 3)).sum().backward()
        optimiser.step()
        for index, (reference, own) in enumerate(zip(references, plain, strict=True)):
            own.zero_grad()
            (reference(fresh[index : index + 1]) - target[index]).square().mean().backward()
            own.step()
    for index, reference in enumerate(references):
        for name, value in reference.live_values().items():
            torch.testing.assert_close(networks.get_parameter(name)[index], value, rtol=0, atol=1e-7)


@EVERY
def test_parameters_are_counted_as_the_layers_have_them_and_those_left_out_have_no_gradient(changes: dict) -> None:
    config = dataclasses.replace(SMALL, **changes)
    reference = VariantNet(config, 3, 2).double()
    assert config.parameter_count(image_channels=3, scales=2) == sum(p.numel() for p in reference.parameters())
    (reference(torch.rand(1, 4, 16, 15, dtype=torch.float64)) * torch.randn(1, 3, 16, 15)).sum().backward()
    live = {id(p) for p in reference.live_values().values()}
    dead = [p for p in reference.parameters() if id(p) not in live]
    convolutions = [m for m in reference.modules() if isinstance(m, nn.Conv2d)]
    assert len(dead) == len(convolutions) - 1 + 2
    assert max(p.grad.abs().max().item() for p in dead) < 1e-11


def test_lanczos_filters_are_the_published_ones() -> None:
    """Of factor 2 and phase 1/2, by the published code's formula with indices from 1."""
    from dipdefense.engine.variants import _lanczos

    for support in (2, 3):
        kernel, centre = torch.zeros(4 * support, 4 * support, dtype=torch.float64), (4 * support + 2) / 2
        for i, j in itertools.product(range(1, 4 * support + 1), repeat=2):
            across, along = (torch.tensor(abs(k + 0.5 - centre) / 2, dtype=torch.float64) * torch.pi for k in (i, j))
            kernel[i - 1, j - 1] = 1
            for x in (across, along):
                kernel[i - 1, j - 1] *= support * torch.sin(x) * torch.sin(x / support) / x**2
        kernel /= kernel.sum()
        torch.testing.assert_close(_lanczos(support, torch.float64, torch.device("cpu")), kernel, rtol=0, atol=1e-14)


@EVERY
def test_an_image_alone_is_the_one_in_a_batch_and_a_snapshot_the_shorter_run(changes: dict) -> None:
    config = dataclasses.replace(SMALL, scales=2, **changes)
    images = torch.rand(3, 3, 32, 35)
    whole = reconstruct(images, budgets=(4, 8), config=config, seed=(5, 6, 7), precision="fp32")
    assert torch.equal(whole.images[0], reconstruct(images, budgets=(4,), config=config, seed=(5, 6, 7)).images[0])
    alone = reconstruct(images[1:2], budgets=(8,), config=config, seed=6, precision="fp32")
    torch.testing.assert_close(alone.images[0, 0], whole.images[1, 1], rtol=0, atol=1e-5)
    assert whole.losses[-1].max() < whole.losses[0].min()


def test_bf16_and_no_noise_are_fitted_too() -> None:
    config = dataclasses.replace(SMALL, scales=2, noise_std=0, downsampling="lanczos2", activation="swish")
    run = reconstruct(torch.rand(2, 3, 32, 32), budgets=(3,), config=config, seed=0, precision="bf16")
    assert run.status == ("ok", "ok")
    assert run.images.dtype == torch.float32


def test_networks_that_the_fast_path_can_do_have_it() -> None:
    from dipdefense.checks import check_request

    def kind(config: DIPConfig) -> type:
        request = check_request(
            torch.rand(1, 3, 32, 32), budgets=(1,), config=config, seed=0, precision="fp32", backend="torch"
        )
        return type(Fitting(request, "torch").networks)

    fast = ({}, {"skip_channels": 0}, {"leaky_slope": 0}, {"noise_std": 0}, {"scales": 1}, {"input_channels": 1})
    assert {kind(dataclasses.replace(SMALL, **changes)) for changes in fast} == {SkipNets}
    assert kind(dataclasses.replace(SMALL, pointwise=False)) is VariantNets


def test_triton_refuses_a_variant_before_any_work_and_auto_leaves_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(SMALL, upsampling="nearest", kernel_size=5)
    message = r'backend="triton" has no kernels for DIPConfig\(kernel_size=5, upsampling=\'nearest\'\); use'
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match=message):
        reconstruct(torch.rand(1, 3, 32, 32), budgets=(1,), config=config, backend="triton")
    with pytest.raises(ValueError, match=message):
        DIPPurifier(config=config, backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(backends, "check_backend", lambda backend, device, config: check(backend, config=config))
    assert backends.available(torch.device("cuda:0"), config) == ("cudagraphs",)
    assert backends.available(torch.device("cuda:0"), SMALL) == ("cudagraphs", "triton")


def check(backend: str, *, config: DIPConfig) -> None:
    from dipdefense.checks import check_backend

    check_backend(backend, config=config)


# One image of 224×224 with the compact network, MiB as measured on a CPU.
MEASURED = {"5×5": 374, "average": 284, "max": 302, "Lanczos, 3": 283, "nearest": 270, "swish": 286, "no 1×1": 251}


@pytest.mark.parametrize(("name", "mebibytes"), MEASURED.items(), ids=MEASURED)
def test_memory_is_estimated_for_what_a_variant_took(name: str, mebibytes: int) -> None:
    estimate = bytes_per_image(dataclasses.replace(DIPConfig.compact(), **VARIANTS[name]), 3, 224, 224) / 2**20
    assert 0.95 < estimate / mebibytes < 1.25


@pytest.mark.parametrize(("scales", "side", "fits"), [(4, 32, 3), (3, 16, 2), (None, 64, 4)], ids=str)
def test_kernels_of_5x5_need_a_larger_map(scales: int | None, side: int, fits: int) -> None:
    config = DIPConfig(scales=scales, channels=4, kernel_size=5)
    with pytest.raises(ValueError, match=f"kernels of 5×5, which need more than .* at most {fits} scales fit"):
        config.scales_for(side, side + 9)
    fitting = dataclasses.replace(config, scales=fits)
    run = reconstruct(torch.rand(1, 3, side, side + 9), budgets=(1,), config=fitting)
    assert run.images.isfinite().all()
