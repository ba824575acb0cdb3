"""torch.func on a defended model: backward's gradients, and vmap as documented."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_reconstruct import CLOSE
from torch import Tensor, nn
from torch.autograd import forward_ad

from dipdefense import DIPConfig, DIPPurifier
from dipdefense.randomization import RandomResizePad

CLASSIFIER = nn.Sequential(nn.Conv2d(3, 4, 5, stride=3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 100, 3))

SEEDS = pytest.mark.parametrize("seed", [0, (3, 4)], ids=["one", "each"])


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32)


@pytest.fixture
def stack() -> Tensor:
    """(3, 2, C, H, W): an axis more than a batch has."""
    return torch.rand(3, 2, 3, 32, 32)


def scalar(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda images: model(images).logsumexp(dim=1).sum()


def plain_gradient(model: nn.Module, images: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    return torch.autograd.grad(scalar(model)(leaf), leaf)[0]


@SEEDS
def test_grad(tiny: DIPConfig, images: Tensor, seed) -> None:
    model = nn.Sequential(DIPPurifier(2, config=tiny, seed=seed), CLASSIFIER)
    gradient = torch.func.grad(scalar(model))(images)
    assert torch.equal(gradient, plain_gradient(model, images))
    assert gradient.abs().max() > 0


@SEEDS
def test_jacrev_and_jvp_agree(tiny: DIPConfig, images: Tensor, seed) -> None:
    model = nn.Sequential(DIPPurifier(2, config=tiny, seed=seed), CLASSIFIER)
    jacobian = torch.func.jacrev(model)(images)
    direction = torch.rand_like(images)
    output, tangent = torch.func.jvp(model, (images,), (direction,))
    assert torch.equal(output, model(images))
    torch.testing.assert_close(tangent, torch.einsum("ncmxyz,mxyz->nc", jacobian, direction))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(model(forward_ad.make_dual(images, direction)))
    torch.testing.assert_close(dual.tangent, tangent)


@SEEDS
@pytest.mark.parametrize("axis", [0, 1])
def test_vmap_is_a_call_for_each(tiny: DIPConfig, stack: Tensor, seed, axis: int) -> None:
    purifier = DIPPurifier(2, config=tiny, seed=seed)
    result = torch.vmap(purifier, in_dims=axis, out_dims=axis)(stack.movedim(0, axis)).movedim(axis, 0)
    torch.testing.assert_close(result, torch.stack([purifier(images) for images in stack]), **CLOSE)


def test_nested_vmap(tiny: DIPConfig, stack: Tensor) -> None:
    purifier = DIPPurifier(2, config=tiny, seed=0)
    result = torch.vmap(torch.vmap(lambda image: purifier(image[None])[0]))(stack)
    torch.testing.assert_close(result, torch.stack([purifier(images) for images in stack]), **CLOSE)


def test_without_a_seed_vmap_gives_every_image_a_fresh_one(tiny: DIPConfig) -> None:
    same = torch.rand(1, 1, 3, 32, 32).expand(3, 2, 3, 32, 32)
    outputs = torch.vmap(DIPPurifier(2, config=tiny))(same).flatten(0, 1)
    assert torch.pdist(outputs.flatten(1)).min() > 1


def test_vmap_over_the_batch_itself_says_what_is_missing(tiny: DIPConfig, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"got \(3, 32, 32\); add a batch axis with images\[None\]"):
        torch.vmap(DIPPurifier(1, config=tiny))(images)


@SEEDS
def test_gradients_of_every_slice(tiny: DIPConfig, stack: Tensor, seed) -> None:
    model = nn.Sequential(DIPPurifier(2, config=tiny, seed=seed), CLASSIFIER)
    expected = torch.stack([plain_gradient(model, images) for images in stack])
    torch.testing.assert_close(torch.vmap(torch.func.grad(scalar(model)))(stack), expected, rtol=0, atol=1e-3)
    together = torch.func.grad(lambda stack: torch.vmap(scalar(model))(stack).sum())(stack)
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "differentiate",
    [
        lambda model, images: torch.func.grad(scalar(model))(images),
        lambda model, images: torch.func.jvp(model, (images,), (images,)),
        lambda model, images: torch.func.jacrev(model)(images),
        lambda model, images: plain_gradient(model, images),
    ],
    ids=["grad", "jvp", "jacrev", "backward"],
)
def test_no_gradient_raises_with_its_explanation(tiny: DIPConfig, images: Tensor, differentiate) -> None:
    model = nn.Sequential(DIPPurifier(1, config=tiny, gradient="none"), CLASSIFIER)
    with pytest.raises(RuntimeError, match=r'DIPPurifier\(gradient="none"\) has no gradient: .*"straight-through"'):
        differentiate(model, images)


def test_without_a_gradient_vmap_still_purifies(tiny: DIPConfig, stack: Tensor) -> None:
    purifier = DIPPurifier(1, config=tiny, seed=0, gradient="none")
    assert torch.vmap(purifier)(stack).shape == stack.shape


def test_the_output_may_be_changed_in_place(tiny: DIPConfig, images: Tensor) -> None:
    purified = DIPPurifier(1, config=tiny, seed=0)(images.requires_grad_())
    assert purified.mul_(2).requires_grad


def test_the_randomisation_differentiates(images: Tensor) -> None:
    model = nn.Sequential(RandomResizePad(seed=0), nn.AdaptiveAvgPool2d(10), nn.Flatten(), nn.Linear(300, 3))
    torch.testing.assert_close(torch.func.grad(scalar(model))(images), plain_gradient(model, images))
