"""The unrolled fit against the engine, `reconstruct` and finite differences."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from dipdefense import DIPConfig, reconstruct
from dipdefense.attacks.adaptive.skip_network import output
from dipdefense.attacks.adaptive.unroll import unrolled
from dipdefense.engine.network import SkipNets

CONFIGS = {
    "skips": DIPConfig(scales=2, channels=6, skip_channels=2, input_channels=4),
    "none": DIPConfig(scales=2, channels=4, skip_channels=0, input_channels=3),
    "architecture_2": DIPConfig.architecture_2(),
}


def images(side: int = 9, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(2, 3, side, side + 1, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_plain_network_is_the_engines(config: DIPConfig) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    networks = SkipNets(
        config, image_channels=3, scales=config.scales, generators=generators, device="cpu", dtype=torch.float64
    )
    noise = torch.rand(2, config.input_channels, 17, 18, dtype=torch.float64)
    plain = output(dict(networks.named_parameters()), noise, config, config.scales)
    assert torch.allclose(plain, networks(noise), atol=1e-10)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_it_is_the_reconstruction(config: DIPConfig) -> None:
    # Adam's first updates are signs, and rounding turns those of small gradients; a larger ε makes them smooth.
    for numbers, budgets in ((config, (1, 2)), (dataclasses.replace(config, adam_eps=1e-3), (3, 6))):
        run = reconstruct(images(32), budgets=budgets, config=numbers, seed=(5, 6), precision="fp32")
        for budget, expected in zip(run.budgets, run.images, strict=True):
            found = unrolled(images(32), iterations=budget, config=numbers, seeds=(5, 6))
            assert torch.allclose(found, expected, atol=1e-4), budget


@pytest.mark.parametrize("iterations", [2, 3, 6])
def test_its_gradient_is_that_of_finite_differences(iterations: int) -> None:
    given = images(dtype=torch.float64).requires_grad_()
    # A larger ε makes Adam's update smoother than a sign, so that differences of 1e-6 are small.
    config = dataclasses.replace(CONFIGS["skips"], adam_eps=1e-3)

    def fit(images: Tensor) -> Tensor:
        return unrolled(images, iterations=iterations, config=config, seeds=(5, 6))

    assert torch.autograd.gradcheck(fit, given, eps=1e-7, atol=1e-4, rtol=1e-3, fast_mode=True)
    direction = torch.randn(given.shape, dtype=torch.float64)
    weights = torch.randn(given.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((fit(given) * weights).sum(), given)
    with torch.no_grad():
        difference = (fit(given + 1e-6 * direction) - fit(given - 1e-6 * direction)) / 2e-6
    assert (gradient * direction).sum().item() == pytest.approx((difference * weights).sum().item(), rel=1e-4)


def test_one_iteration_does_not_depend_on_the_image() -> None:
    given = images().requires_grad_()
    (gradient,) = torch.autograd.grad(unrolled(given, iterations=1, config=CONFIGS["skips"], seeds=(5, 6)).sum(), given)
    assert (gradient == 0).all()


def test_images_do_not_meet() -> None:
    given = images().requires_grad_()
    (gradient,) = torch.autograd.grad(
        unrolled(given, iterations=4, config=CONFIGS["skips"], seeds=(5, 6))[0].sum(), given
    )
    assert (gradient[0] != 0).any()
    assert (gradient[1] == 0).all()


def test_no_global_generator_is_touched() -> None:
    before = torch.get_rng_state()
    unrolled(images(), iterations=3, config=CONFIGS["skips"], seeds=(5, 6))
    assert torch.equal(torch.get_rng_state(), before)
