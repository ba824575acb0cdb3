"""A reduction: networks fitted to smaller images, outputs at the original size."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dipdefense import DIPConfig, DIPPurifier, reconstruct
from dipdefense.attacks.adaptive.unroll import unrolled
from dipdefense.checks import check_request
from dipdefense.config import CONFIGS
from dipdefense.engine.memory import bytes_per_image
from dipdefense.reconstruct import Reconstruction, initial
from dipdefense.reduction import enlarged
from dipdefense.stopping import Trend

SIZE, SMALLER = (33, 40), (17, 20)


@pytest.fixture
def halved(tiny: DIPConfig) -> DIPConfig:
    return dataclasses.replace(tiny, reduction=2)


def smaller_run(images: Tensor, config: DIPConfig, budgets: tuple[int, ...], seed: int) -> Reconstruction:
    smaller = interpolate(images, size=SMALLER, mode="area")
    return reconstruct(smaller, budgets=budgets, config=config, seed=seed, precision="fp32")


def larger(images: Tensor) -> Tensor:
    return interpolate(images, size=SIZE, mode="bicubic", antialias=True).clamp(0, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_it_is_the_smaller_images_reconstruction_enlarged(tiny: DIPConfig, halved: DIPConfig, dtype) -> None:
    images = torch.rand(2, 3, *SIZE, dtype=dtype)
    run = reconstruct(images, budgets=(1, 3), config=halved, seed=5, precision="fp32")
    expected = smaller_run(images.float(), tiny, (1, 3), seed=5)
    assert (run.images.shape, run.images.dtype) == ((2, *images.shape), dtype)
    torch.testing.assert_close(run.losses, expected.losses)
    # Values a little apart may be rounded to neighbouring float16.
    close = max(1e-5, torch.finfo(dtype).eps)
    for output, own in zip(run.images, expected.images, strict=True):
        torch.testing.assert_close(output, larger(own).to(dtype), rtol=1e-5, atol=close)
    alone = reconstruct(images[1:], budgets=(3,), config=halved, seed=5, precision="fp32")
    torch.testing.assert_close(alone.images[0, 0], run.images[1, 1], rtol=0, atol=close)


def test_every_image_has_its_own_seed_and_every_iteration_is_told(tiny: DIPConfig, halved: DIPConfig) -> None:
    images, told = torch.rand(2, 3, *SIZE), []
    run = reconstruct(
        images, budgets=(2,), config=halved, seed=(5, 6), precision="fp32", on_iteration=lambda: told.append(1)
    )
    for place, seed in enumerate((5, 6)):
        alone = smaller_run(images[[place]], tiny, (2,), seed=seed)
        torch.testing.assert_close(run.losses[:, place], alone.losses[:, 0])
    assert len(told) == 2


def test_a_rule_ends_the_fit_where_it_ends_the_smaller_images(tiny: DIPConfig, halved: DIPConfig) -> None:
    images, settings = torch.rand(2, 3, *SIZE), {"budgets": (40,), "seed": 5, "precision": "fp32"}
    rule = Trend(warm_up=2, patience=1, smoothing=0.9)
    run = reconstruct(images, config=halved, stopping=rule, **settings)
    smaller = interpolate(images, size=SMALLER, mode="area")
    assert run.iterations == reconstruct(smaller, config=tiny, stopping=rule, **settings).iterations
    assert min(run.iterations) < 40


def test_enlarged_pixels_stay_in_range() -> None:
    """A cubic curve overshoots beside an edge."""
    edge = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 1, 4, 4)
    assert torch.equal(torch.stack(enlarged(edge, (8, 8)).aminmax()), torch.tensor([0.0, 1.0]))


def test_other_implementations_get_noise_of_the_smaller_size(halved: DIPConfig) -> None:
    request = check_request(
        torch.rand(2, 3, *SIZE), budgets=(1,), config=halved, seed=5, precision="fp32", backend="torch"
    )
    assert initial(request).noise.shape == (2, halved.input_channels, *SMALLER)


def test_the_purifier_has_the_images_size_and_the_identitys_gradient(halved: DIPConfig) -> None:
    images = torch.rand(3, 3, *SIZE, requires_grad=True)
    purifier = DIPPurifier(2, config=halved, seed=1, batch_size=2)
    weights = torch.rand(images.shape)
    purified = purifier(images)
    (purified * weights).sum().backward()
    assert purified.shape == images.shape
    assert torch.equal(images.grad, weights)
    assert purifier(images[:0]).shape == (0, 3, *SIZE)


def test_a_diverging_image_is_nan_at_its_own_size(halved: DIPConfig) -> None:
    config = dataclasses.replace(halved, learning_rate=1e30)
    with pytest.warns(RuntimeWarning, match="diverged"):
        assert DIPPurifier(4, config=config, seed=1)(torch.rand(1, 3, *SIZE)).isnan().all()


def test_the_unrolled_fit_is_the_reconstruction_and_its_gradient_reaches_the_image(halved: DIPConfig) -> None:
    images = torch.rand(1, 3, *SIZE, dtype=torch.float64, requires_grad=True)
    output = unrolled(images, iterations=3, config=halved, seeds=(4,))
    run = reconstruct(images.detach(), budgets=(3,), config=halved, seed=(4,), precision="fp32")
    torch.testing.assert_close(output.detach(), run.images[0], rtol=0, atol=1e-4)
    output.square().sum().backward()
    assert images.grad.abs().amax() > 0
    assert unrolled(images.half(), iterations=1, config=halved, seeds=(4,)).dtype == torch.float16


def test_images_too_small_for_it_are_refused_by_both_sizes() -> None:
    with pytest.raises(ValueError, match="got 62×70, which reduction=2 makes 31×35; enlarge them"):
        DIPConfig.half_size().scales_for(62, 70)
    assert DIPConfig.half_size().scales_for(63, 70) == 3
    assert DIPConfig.half_size().scales_for(127, 224) == 5


def test_memory_is_that_of_the_smaller_image(tiny: DIPConfig, halved: DIPConfig) -> None:
    assert bytes_per_image(halved, 3, 128, 97) == bytes_per_image(tiny, 3, 64, 49)
    purifier, plain = (DIPPurifier(1, config=config) for config in (halved, tiny))
    assert purifier.room_for(torch.rand(99, 3, 128, 128)).at_once == plain.room_for(torch.rand(99, 3, 64, 64)).at_once


def test_it_is_stored_only_where_there_is_one(tiny: DIPConfig, halved: DIPConfig) -> None:
    assert "reduction" not in tiny.to_json()
    assert halved.to_json()["reduction"] == 2
    assert DIPConfig.from_json(halved.to_json()) == halved
    assert not halved.variants()
    assert CONFIGS["half-size"]() == dataclasses.replace(DIPConfig.compact(), reduction=2)
    with pytest.raises(ValueError, match="reduction must be an integer of at least 1"):
        DIPConfig(reduction=0)
