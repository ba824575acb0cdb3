"""out_of_range="clip" lets attacks step out of [0, 1] before they clip.

The gradient is that of the unclipped values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dipdefense import DIPConfig, DIPPurifier
from dipdefense.batches import scale_advice
from dipdefense.randomization import RandomizationDefence, RandomResizePad, random_resize_pad

CLASSIFIER = nn.Sequential(nn.Conv2d(3, 4, 5, stride=3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
TINY = DIPConfig(scales=2, channels=4, skip_channels=2, input_channels=4)

DEFENCES = {
    "dip": lambda **options: DIPPurifier(2, config=TINY, seed=0, **options),
    "randomisation": lambda **options: RandomResizePad(seed=0, **options),
    "averaged": lambda **options: RandomizationDefence(CLASSIFIER, passes=2, seed=0, **options),
    "function": lambda **options: lambda images: random_resize_pad(images, seed=0, **options),
}
ALL = pytest.mark.parametrize("defence", DEFENCES.values(), ids=DEFENCES)


@pytest.fixture
def outside() -> Tensor:
    return torch.rand(2, 3, 32, 32) * 1.6 - 0.3


@ALL
def test_clipping_is_the_clipped_images(defence: Callable, outside: Tensor) -> None:
    clip = defence(out_of_range="clip")
    assert torch.equal(clip(outside), defence()(outside.clamp(0, 1)))
    assert torch.equal(clip(outside.clamp(0, 1)), defence()(outside.clamp(0, 1)))
    far = torch.where(outside < 0, -1e30, outside)
    assert torch.equal(clip(far), defence()(outside.clamp(0, 1)))


@ALL
def test_by_default_it_is_refused(defence: Callable, outside: Tensor) -> None:
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        defence()(outside)


@ALL
def test_the_gradient_is_the_unclipped_one(defence: Callable, outside: Tensor) -> None:
    gradients = []
    for images in (outside, outside.clamp(0, 1)):
        leaf = images.clone().requires_grad_()
        defence(out_of_range="clip")(leaf).exp().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)
    assert (gradients[0][outside < 0] != 0).float().mean() > 0.5  # mid-grey padding and resizing leave some out


@ALL
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused_all_the_same(defence: Callable, value: float) -> None:
    images = torch.rand(3, 3, 32, 32)
    images[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match=r"images must be finite, but NaN or infinity is in the images at \[1\]"):
        defence(out_of_range="clip")(images)


def test_one_run_of_several_budgets_clips_too(outside: Tensor) -> None:
    run = DIPPurifier(2, config=TINY, seed=0, out_of_range="clip").reconstruct(outside, budgets=(1, 2))
    assert torch.equal(
        run.images, DIPPurifier(2, config=TINY, seed=0).reconstruct(outside.clamp(0, 1), budgets=(1, 2)).images
    )


def test_another_scale_is_warned_of_and_an_attacks_step_is_not(outside: Tensor) -> None:
    clip = RandomResizePad(seed=0, out_of_range="clip")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip(outside)
        clip(torch.rand(2, 3, 32, 32).round() * 1.02 - 0.01)  # SPSA beside pixels that are black or white
        clip(torch.rand(2, 3, 32, 32) + torch.randn(2, 3, 32, 32))  # Captum's NoiseTunnel as it comes
    with pytest.warns(UserWarning, match="most of the images' values lie far outside .* from .* to 25"):
        clip(torch.rand(2, 3, 32, 32) * 255)


def spsa(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
    """A step as in cleverhans and torchattacks: differences at unclipped points."""
    signs = torch.randint(2, (8, *images.shape)).float() * 2 - 1
    losses = [
        torch.stack([nn.functional.cross_entropy(model(images + side * 0.01 * s), labels) for side in (1, -1)])
        for s in signs
    ]
    slope = sum((up - down) / 0.02 * s for (up, down), s in zip(losses, signs, strict=True))
    return (images + epsilon * slope.sign()).clamp(0, 1)


@pytest.mark.parametrize("kind", ["dip", "randomisation"])
def test_spsa_runs(kind: str) -> None:
    images, labels = torch.rand(2, 3, 32, 32).round(), torch.arange(2)
    with torch.no_grad():
        adversarial = spsa(nn.Sequential(DEFENCES[kind](out_of_range="clip"), CLASSIFIER), images, labels, epsilon=0.03)
        with pytest.raises(ValueError, match="out_of_range"):
            spsa(nn.Sequential(DEFENCES[kind](), CLASSIFIER), images, labels, epsilon=0.03)
    assert not torch.equal(adversarial, images)


@pytest.mark.parametrize(
    ("low", "high", "said", "unsaid"),
    [
        (-2.1, 2.6, "already normalised", "255"),
        (-1.0, 1.0, "already normalised", "255"),
        (0.0, 255.0, "divide by 255", "normalised"),
        (0.0, 257.0, "65535, not by 255", "normalised"),
        (0.0, 65535.0, "65535, not by 255", "normalised"),
        (-0.01, 1.01, 'out_of_range="clip"', "normalised"),
        (-5.0, 5.0, 'out_of_range="clip"', "normalised"),
        (0.0, 1.5, 'out_of_range="clip"', "255"),
        (-0.3, 300.0, 'out_of_range="clip"', "255"),
        (0.0, 1e9, 'out_of_range="clip"', "255"),
    ],
)
def test_advice_goes_by_the_values(low: float, high: float, said: str, unsaid: str) -> None:
    assert said in scale_advice(low, high)
    assert unsaid not in scale_advice(low, high)
