"""Saliency maps against Captum, against plain loops, and by what defines them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dipdefense.saliency import gradient, integrated_gradients, mask, mig_sg, overlay, smoothgrad

METHODS = {
    "gradient": gradient,
    "integrated gradients": partial(integrated_gradients, steps=4),
    "SmoothGrad": partial(smoothgrad, samples=5),
    "MIG-SG": partial(mig_sg, steps=3, samples=2),
}
METHOD = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
RANDOM = pytest.mark.parametrize("method", [METHODS["SmoothGrad"], METHODS["MIG-SG"]], ids=["SmoothGrad", "MIG-SG"])


@pytest.fixture
def classifier() -> nn.Module:
    """Smooth, nonlinear, with batch statistics and dropout that need eval mode."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(6 * 36, 5)
    ).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 8, 8)


def captum(name: str) -> Callable[..., object]:
    attribution: Callable[..., object] = getattr(pytest.importorskip("captum.attr"), name)
    return attribution


def plain_gradient(classifier: nn.Module, point: Tensor, target: int) -> Tensor:
    point = point.detach().requires_grad_()
    classifier(point[None])[0, target].backward()
    assert point.grad is not None
    return point.grad


def noises(image: Tensor, count: int, *, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(image.shape, generator=generator) for _ in range(count)]


def test_integrated_gradients_are_captums(classifier: nn.Module, images: Tensor) -> None:
    for baseline in (torch.zeros_like(images), torch.rand_like(images)):
        oracle = captum("IntegratedGradients")(classifier).attribute(
            images, baselines=baseline, target=2, n_steps=7, method="riemann_middle"
        )
        own = integrated_gradients(classifier, images, target=2, baseline=baseline, steps=7)
        torch.testing.assert_close(own, oracle)


def test_the_gradient_is_captums(classifier: nn.Module, images: Tensor) -> None:
    oracle = captum("Saliency")(classifier).attribute(images, target=[0, 4, 1], abs=False)
    torch.testing.assert_close(gradient(classifier, images, target=[0, 4, 1]), oracle)


def test_smoothgrad_without_noise_is_captums(classifier: nn.Module, images: Tensor) -> None:
    tunnel = captum("NoiseTunnel")(captum("Saliency")(classifier))
    oracle = tunnel.attribute(images, nt_type="smoothgrad", nt_samples=3, stdevs=0.0, target=1, abs=False)
    torch.testing.assert_close(smoothgrad(classifier, images, target=1, samples=3, noise_std=0), oracle)


def test_smoothgrad_is_captums_with_the_same_noise(
    classifier: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    attribution = captum("NoiseTunnel")
    image, samples = images[:1], iter(noises(images[0], 4, seed=3))
    tunnel = importlib.import_module("captum.attr._core.noise_tunnel")
    monkeypatch.setattr(tunnel.torch, "normal", lambda mean, std: mean + std * torch.stack([*samples]))
    oracle = attribution(captum("Saliency")(classifier)).attribute(
        image, nt_type="smoothgrad", nt_samples=4, stdevs=0.15, target=1, abs=False
    )
    torch.testing.assert_close(smoothgrad(classifier, image, target=1, samples=4, seed=3), oracle)


@pytest.mark.parametrize("baseline", [0.0, 0.5], ids=["black", "grey"])
def test_integrated_gradients_are_complete(classifier: nn.Module, images: Tensor, baseline: float) -> None:
    """Sundararajan et al. 2017, axiom 1."""
    with torch.no_grad():
        scores = classifier(images).max(dim=1)
        origin = classifier(torch.full_like(images, baseline)).gather(1, scores.indices[:, None])[:, 0]
    total = integrated_gradients(classifier, images, baseline=baseline, steps=100).sum(dim=(1, 2, 3))
    torch.testing.assert_close(total, scores.values - origin, atol=1e-4, rtol=1e-4)


def test_mig_sg_is_equation_1(classifier: nn.Module, images: Tensor) -> None:
    classifier, images = classifier.double(), images.double()
    steps, samples, noise_std, baseline = 3, 2, 0.2, torch.rand(3, 8, 8).double()
    own = mig_sg(
        classifier, images, target=4, baseline=baseline, steps=steps, samples=samples, noise_std=noise_std, seed=11
    )
    for image, saliency in zip(images, own, strict=True):
        noise = iter(noises(image, (steps + 1) * samples, seed=11))
        total = torch.zeros_like(image)
        for k in range(steps + 1):
            for _ in range(samples):
                point = baseline + k / steps * (image - baseline) + noise_std * next(noise).double()
                total += plain_gradient(classifier, point, 4).abs()
        expected = ((image - baseline) / (steps * samples) * total).abs()
        torch.testing.assert_close(saliency, expected, atol=1e-12, rtol=1e-10)


@METHOD
def test_the_default_target_is_the_predicted_class(
    method: Callable[..., Tensor], classifier: nn.Module, images: Tensor
) -> None:
    predicted = classifier(images).argmax(dim=1)
    assert torch.equal(method(classifier, images), method(classifier, images, target=predicted))
    assert not torch.allclose(method(classifier, images), method(classifier, images, target=(predicted + 1) % 5))


@METHOD
def test_a_map_depends_neither_on_the_batch_nor_on_its_size(
    method: Callable[..., Tensor], classifier: nn.Module, images: Tensor
) -> None:
    together = method(classifier, images)
    alone = torch.cat([method(classifier, image[None]) for image in images])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together, method(classifier, images, batch_size=2))


@METHOD
def test_the_classifier_never_gets_more_than_batch_size_images(
    method: Callable[..., Tensor], classifier: nn.Module, images: Tensor
) -> None:
    sizes: list[int] = []
    classifier.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    method(classifier, images, batch_size=2)
    assert max(sizes) == 2


@RANDOM
def test_the_seed_decides_and_no_global_generator_is_touched(
    method: Callable[..., Tensor], classifier: nn.Module, images: Tensor
) -> None:
    before = torch.get_rng_state()
    first = method(classifier, images, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(method(classifier, images, seed=5), first)
    assert not torch.allclose(method(classifier, images, seed=6), first)


@RANDOM
def test_the_noise_is_the_same_whatever_the_default_dtype(
    method: Callable[..., Tensor], classifier: nn.Module, images: Tensor
) -> None:
    expected = method(classifier, images, seed=5)
    torch.set_default_dtype(torch.float64)
    try:
        found = method(classifier, images, seed=5)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected)


@METHOD
@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
def test_it_works_without_gradients_around_it(
    method: Callable[..., Tensor], surroundings: Callable[[], object], classifier: nn.Module, images: Tensor
) -> None:
    expected = method(classifier, images)
    with surroundings():
        found = method(classifier, images.clone())
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


@METHOD
def test_the_classifier_is_left_as_it_was(method: Callable[..., Tensor], classifier: nn.Module, images: Tensor) -> None:
    expected = method(classifier, images)
    classifier.train()
    classifier[0].eval()
    grads = [torch.rand_like(parameter) for parameter in classifier.parameters()]
    for parameter, grad in zip(classifier.parameters(), grads, strict=True):
        parameter.grad = grad.clone()
    state = {name: value.clone() for name, value in classifier.state_dict().items()}
    torch.testing.assert_close(method(classifier, images.requires_grad_()), expected)
    assert [module.training for module in classifier] == [False, True, True, True, True, True]
    assert images.grad is None
    assert all(torch.equal(p.grad, grad) for p, grad in zip(classifier.parameters(), grads, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in classifier.state_dict().items())


@METHOD
def test_no_images_have_no_maps(method: Callable[..., Tensor], classifier: nn.Module) -> None:
    assert method(classifier, torch.rand(0, 3, 8, 8)).shape == (0, 3, 8, 8)


@METHOD
def test_half_precision_images_have_maps_of_their_dtype(
    method: Callable[..., Tensor], classifier: nn.Module, images: Tensor
) -> None:
    assert method(classifier.bfloat16(), images.bfloat16()).dtype == torch.bfloat16


class Steep(nn.Module):
    """Every pixel's gradient is 1,000."""

    def forward(self, images: Tensor) -> Tensor:
        score = 1000 * images.flatten(1).sum(dim=1, keepdim=True)
        return torch.cat([score, torch.zeros_like(score)], dim=1)


@pytest.mark.parametrize(
    ("method", "settings"),
    [(integrated_gradients, {"steps": 100}), (smoothgrad, {"samples": 100}), (mig_sg, {"steps": 100, "samples": 100})],
)
def test_sums_of_many_gradients_do_not_overflow_in_float16(method: Callable[..., Tensor], settings: dict) -> None:
    maps = method(Steep(), torch.full((1, 1, 2, 2), 1 / 255, dtype=torch.float16), target=0, **settings)
    expected = 1000.0 if method is smoothgrad else 1000 / 255 * (1.01 if method is mig_sg else 1)
    assert maps.dtype == torch.float16
    torch.testing.assert_close(maps.float(), torch.full((1, 1, 2, 2), expected), rtol=1e-2, atol=0)


def test_a_mask_is_clipped_at_the_percentile_of_each_image() -> None:
    saliency = torch.zeros(2, 2, 10, 10)
    saliency[0, 0] = -torch.arange(100.0).reshape(10, 10)
    saliency[1, 1] = 1000 * saliency[0, 0]
    found = mask(saliency, percentile=91)
    torch.testing.assert_close(found[0, 0].flatten(), (torch.arange(100.0) / 90).clamp(max=1))
    torch.testing.assert_close(found[1], found[0])
    assert mask(torch.zeros(1, 3, 4, 4)).eq(0).all()
    sparse = torch.zeros(1, 1, 20, 20)
    sparse[0, 0, 3, 4] = 0.1
    assert torch.equal(mask(sparse, percentile=50), (sparse > 0).float())


def test_an_overlay_is_the_image_where_the_mask_is_1() -> None:
    image, shade = torch.rand(2, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    shade[..., 1, :] = 1
    found = overlay(image, shade, dark=0.1)
    assert torch.equal(found[..., 1, :], image[..., 1, :])
    torch.testing.assert_close(found[..., 2, :], 0.1 * image[..., 2, :])


class Detached(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.detach().flatten(1)


GOOD = torch.rand(2, 3, 8, 8)
LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
REFUSED = {
    "no module": (lambda: gradient(len, GOOD), TypeError, "classifier must be a torch.nn.Module"),
    "no logits": (lambda: gradient(nn.Identity(), GOOD), ValueError, r"classifier must return \(N, classes\) logits"),
    "no gradient": (lambda: gradient(Detached(), GOOD), ValueError, "classifier must be differentiable"),
    "no batch": (lambda: mig_sg(LINEAR, GOOD[0]), ValueError, "images must have shape"),
    "uint8": (lambda: smoothgrad(LINEAR, GOOD.byte()), TypeError, "images must be floating point"),
    "target too high": (lambda: gradient(LINEAR, GOOD, target=4), ValueError, r"target must lie in \[0, 4\)"),
    "target negative": (lambda: gradient(LINEAR, GOOD, target=-1), ValueError, "target must be a class number"),
    "target of three": (lambda: gradient(LINEAR, GOOD, target=[0, 1, 2]), ValueError, "got 3 classes for 2 images"),
    "target a name": (lambda: gradient(LINEAR, GOOD, target="dog"), TypeError, "target must be a class number"),
    "target a float": (lambda: gradient(LINEAR, GOOD, target=1.0), TypeError, "target must be a class number"),
    "batch of none": (lambda: gradient(LINEAR, GOOD, batch_size=0), ValueError, "batch_size must be"),
    "batch of too many": (lambda: gradient(LINEAR, GOOD, batch_size=10**30), ValueError, "batch_size must be"),
    "no steps": (lambda: mig_sg(LINEAR, GOOD, steps=0), ValueError, "steps must be"),
    "half a step": (lambda: integrated_gradients(LINEAR, GOOD, steps=0.5), TypeError, "steps must be"),
    "no samples": (lambda: smoothgrad(LINEAR, GOOD, samples=0), ValueError, "samples must be"),
    "noise": (lambda: smoothgrad(LINEAR, GOOD, noise_std=-1), ValueError, "noise_std must be zero or a positive"),
    "seed": (lambda: mig_sg(LINEAR, GOOD, seed=None), TypeError, "seed must be an integer in"),
    "baseline": (lambda: mig_sg(LINEAR, GOOD, baseline=GOOD[..., :4]), ValueError, "baseline must broadcast"),
    "baseline NaN": (lambda: mig_sg(LINEAR, GOOD, baseline=GOOD / 0 * 0), ValueError, "tensor of finite floats"),
    "baseline 128": (lambda: mig_sg(LINEAR, GOOD, baseline=128), ValueError, "baseline must be a grey level"),
    "percentile": (lambda: mask(GOOD, percentile=0), ValueError, r"percentile must be a number in \(0, 100\]"),
    "map of integers": (lambda: mask(GOOD.byte()), TypeError, "saliency must be a tensor of floats, got torch.uint8"),
    "map of three axes": (lambda: mask(GOOD[0]), ValueError, "saliency must have the shape"),
    "map of NaN": (lambda: mask(GOOD / 0 * 0), ValueError, "saliency must be finite"),
    "map as mask": (lambda: overlay(GOOD, GOOD), ValueError, r"mask must be \(1, 1, height, width\)"),
    "mask of 2": (lambda: overlay(GOOD, 2 + GOOD[:, :1]), ValueError, r"mask must lie in \[0, 1\]"),
    "dark": (lambda: overlay(GOOD, GOOD[:, :1], dark=2), ValueError, "dark must be"),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_it_refuses(call: Callable[[], Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
