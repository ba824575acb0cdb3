"""Saliency maps: the gradient, integrated gradients, SmoothGrad, and MIG-SG (Kattamis et al. 2019, appendix A.1).

Each map tells how much every value of an image matters to the score of one class, before the softmax. The four share
these arguments:

- ``classifier``: any differentiable module from (N, C, H, W) images in [0, 1] to (N, classes) logits. It runs in eval
  mode. Afterwards its modes are as they were, and so are its parameters' gradients.
- ``images``: (N, C, H, W) floats in [0, 1]. Each has a map of its own, which depends on no other image of the batch.
- ``target``: the class of the score, one for all images or one an image; by default the predicted class.
- ``batch_size``: images that the classifier gets at once, which bounds the memory; it changes a map by rounding alone.

The maps have the images' shape, dtype and device, and no gradient of their own. They can be made under
``torch.no_grad()`` and ``torch.inference_mode()``. The random ones follow from ``seed`` alone: every image has the same
noise, whatever its position, and no global generator is touched.

All four raise TypeError or ValueError where an argument is not as described, before any gradient is taken; and
ValueError where the score has no gradient with respect to the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, repeat

import torch
from torch import Tensor, nn

from dipdefense.arguments import integer, real, several, shown
from dipdefense.checks import check_images, check_logits
from dipdefense.modes import evaluated

Target = int | Sequence[int] | Tensor | None

# More than any computation could finish; a larger number is a slip.
_MOST = 2**24

# From an image and its baseline, both (C, H, W), to the points at which its gradients are taken.
_Points = Callable[[Tensor, Tensor], Iterator[Tensor]]


def gradient(classifier: nn.Module, images: Tensor, *, target: Target = None, batch_size: int = 32) -> Tensor:
    """The gradient of the class's score, with its sign.

    Args:
        classifier: see :mod:`dipdefense.saliency`, and so are the next three.
        images: (N, C, H, W) floats in [0, 1].
        target: class of the score.
        batch_size: images at once.

    Returns:
        (N, C, H, W).

    Example:
        >>> classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
        >>> saliency = gradient(classifier, torch.rand(2, 3, 8, 8), target=7)
        >>> torch.equal(saliency[0].flatten(), classifier[1].weight[7])
        True
    """

    def points(image: Tensor, _: Tensor) -> Iterator[Tensor]:
        yield image

    return _summed(classifier, images, target, batch_size, points)


def integrated_gradients(
    classifier: nn.Module,
    images: Tensor,
    *,
    target: Target = None,
    baseline: Tensor | float = 0.0,
    steps: int = 50,
    batch_size: int = 32,
) -> Tensor:
    """Integrated gradients: the image less a baseline, times the mean gradient on the way from there (signed).

    A map's values sum to the difference of the score between image and baseline, up to the error of the integration.
    Sundararajan et al. 2017, equation 3, takes the gradient at the right end of each step; here it is taken in the
    middle, where the error falls with the square of ``steps``.

    Args:
        classifier: see :mod:`dipdefense.saliency`, and so are the next two.
        images: (N, C, H, W) floats in [0, 1].
        target: class of the score.
        baseline: where the way begins: black by default. A grey level in [0, 1], or a finite tensor that broadcasts to
            the images, such as (C, H, W). Values that equal the baseline's have no attribution, so that on black no
            black pixel is salient.
        steps: of the integration, at least 1.
        batch_size: images at once.

    Returns:
        (N, C, H, W).

    Example:
        >>> classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
        >>> images = torch.rand(2, 3, 8, 8)
        >>> saliency = integrated_gradients(classifier, images, target=7)
        >>> change = (classifier(images) - classifier(torch.zeros_like(images)))[:, 7]
        >>> torch.allclose(saliency.sum(dim=(1, 2, 3)), change, atol=1e-4)
        True
    """
    steps = integer("steps", steps, low=1, high=_MOST)
    origins = _baselines(baseline, images)

    def points(image: Tensor, origin: Tensor) -> Iterator[Tensor]:
        for step in range(steps):
            yield origin + (step + 0.5) / steps * (image - origin)

    return (images.detach() - origins) * _summed(classifier, images, target, batch_size, points, origins) / steps


def smoothgrad(
    classifier: nn.Module,
    images: Tensor,
    *,
    target: Target = None,
    samples: int = 50,
    noise_std: float = 0.15,
    seed: int = 0,
    batch_size: int = 32,
) -> Tensor:
    """SmoothGrad: the mean gradient over noisy copies of the image, with its sign (Smilkov et al. 2017, section 3).

    Args:
        classifier: see :mod:`dipdefense.saliency`, and so are the next two.
        images: (N, C, H, W) floats in [0, 1].
        target: class of the score; the predicted class is that of the image without noise.
        samples: noisy copies of each image, at least 1. Beyond 50 the authors found little change.
        noise_std: standard deviation of the Gaussian noise, in units of the range [0, 1]; the authors advise 0.1 to
            0.2. Noisy copies are not clipped.
        seed: an integer in [0, 2**63).
        batch_size: images at once.

    Returns:
        (N, C, H, W).
    """
    samples, noise_std, seed = _noise_arguments(samples, noise_std, seed)

    def points(image: Tensor, _: Tensor) -> Iterator[Tensor]:
        yield from _noisy(repeat(image, samples), noise_std, seed)

    return _summed(classifier, images, target, batch_size, points) / samples


def mig_sg(
    classifier: nn.Module,
    images: Tensor,
    *,
    target: Target = None,
    baseline: Tensor | float = 0.0,
    steps: int = 20,
    samples: int = 10,
    noise_std: float = 0.15,
    seed: int = 0,
    batch_size: int = 32,
) -> Tensor:
    """MIG-SG, integrated gradients of absolute SmoothGrad gradients (Kattamis et al. 2019, equation 1); no sign.

    |(x − x₀) / (m N) · Σ |∇F(x₀ + k/m · (x − x₀) + noise)||, summed over k = 0 … m and n = 1 … N. The sum has
    (m + 1) N terms and is divided by m N, as printed. The paper gives no m, N, σ or baseline; the defaults are this
    library's.

    Args:
        classifier: see :mod:`dipdefense.saliency`, and so are the next two.
        images: (N, C, H, W) floats in [0, 1].
        target: class of the score; the predicted class is that of the image without noise.
        baseline: x₀, black by default; as in :func:`integrated_gradients`.
        steps: m, at least 1.
        samples: N, noisy copies of each of the m + 1 points; at least 1.
        noise_std: σ of the Gaussian noise, in units of the range [0, 1]. Noisy points are not clipped.
        seed: an integer in [0, 2**63).
        batch_size: images at once.

    Returns:
        (N, C, H, W), nowhere negative.

    Example:
        >>> classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
        >>> saliency = mig_sg(classifier, torch.rand(2, 3, 8, 8), steps=2, samples=3)
        >>> saliency.shape, mask(saliency).shape
        (torch.Size([2, 3, 8, 8]), torch.Size([2, 1, 8, 8]))
    """
    steps = integer("steps", steps, low=1, high=_MOST)
    samples, noise_std, seed = _noise_arguments(samples, noise_std, seed)
    origins = _baselines(baseline, images)

    def points(image: Tensor, origin: Tensor) -> Iterator[Tensor]:
        path = (origin + step / steps * (image - origin) for step in range(steps + 1) for _ in range(samples))
        yield from _noisy(path, noise_std, seed)

    summed = _summed(classifier, images, target, batch_size, points, origins, absolute=True)
    return ((images.detach() - origins) / (steps * samples) * summed).abs()


def mask(saliency: Tensor, percentile: float = 99) -> Tensor:
    """How salient each pixel of an image is, from 0 to 1: the map's absolute values summed over the channels.

    Args:
        saliency: (N, C, H, W) maps of any of the methods.
        percentile: of each image's sums, in (0, 100]; this one and all above are 1, so that a few outliers do not
            leave the rest black.

    Returns:
        (N, 1, H, W) in [0, 1]; all 0 where the map is.

    Raises:
        TypeError: ``saliency`` is no tensor of floats.
        ValueError: it has another shape, a value that is not finite, or ``percentile`` is outside its range.

    Example:
        >>> mask(torch.tensor([[[[0.0, -1.0, 2.0, 40.0]]]]), percentile=75)
        tensor([[[[0.0000, 0.5000, 1.0000, 1.0000]]]])
    """
    _check_maps("saliency", saliency)
    percentile = real("percentile", percentile, expected="a number in (0, 100]", holds=lambda x: 0 < x <= 100)
    summed = saliency.detach().abs().sum(dim=1, keepdim=True)
    if saliency.numel() == 0:
        return summed
    values = summed.flatten(1)
    # The nearest rank: torch.quantile refuses large images.
    rank = max(1, round(percentile / 100 * values.shape[1]))
    limit = values.kthvalue(rank, dim=1).values[:, None, None, None]
    # A limit of 0 leaves fewer salient pixels than the percentile has room for: each of them is 1.
    return torch.where(limit > 0, summed / limit, summed > 0).clamp(0, 1).to(summed.dtype)


def overlay(image: Tensor, mask: Tensor, *, dark: float = 0.2) -> Tensor:
    """Images darkened where their masks are 0 and as they are where these are 1.

    Args:
        image: (N, C, H, W) floats in [0, 1].
        mask: (N, 1, H, W) in [0, 1], from :func:`mask`; of one image, it serves them all.
        dark: the share of an image's brightness that stays where the mask is 0, in [0, 1].

    Returns:
        (N, C, H, W) in [0, 1].

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> overlay(torch.ones(1, 1, 1, 2), torch.tensor([[[[0.0, 1.0]]]]))
        tensor([[[[0.2000, 1.0000]]]])
    """
    check_images(image)
    dark = real("dark", dark, expected="a number in [0, 1]", holds=lambda x: 0 <= x <= 1)
    _check_maps("mask", mask)
    if mask.shape[1:] != (1, *image.shape[2:]) or len(mask) not in (1, len(image)):
        raise ValueError(
            f"mask must be (1, 1, height, width) or one an image, {(len(image), 1, *image.shape[2:])} here; got "
            f"{tuple(mask.shape)}"
        )
    if mask.numel() and not 0 <= mask.min() <= mask.max() <= 1:
        raise ValueError("mask must lie in [0, 1]; make one of a saliency map with dipdefense.saliency.mask")
    return image * (dark + (1 - dark) * mask)


def _summed(
    classifier: nn.Module,
    images: Tensor,
    target: Target,
    batch_size: int,
    points: _Points,
    baselines: Tensor | None = None,
    *,
    absolute: bool = False,
) -> Tensor:
    """The sum of the (absolute) gradients at each image's points: (N, C, H, W)."""
    if not isinstance(classifier, nn.Module):
        raise TypeError(f"classifier must be a torch.nn.Module, got {shown(classifier)}")
    check_images(images)
    batch_size = integer("batch_size", batch_size, low=1)
    images, classes = images.detach(), _classes(target, len(images))
    baselines = torch.zeros_like(images) if baselines is None else baselines
    if len(images) == 0:
        return torch.zeros_like(images)
    with evaluated(classifier):
        targets = _targets(classifier, images, classes, batch_size)
        # Thousands of gradients in bf16 would not add up.
        sums = torch.zeros_like(images, dtype=torch.promote_types(images.dtype, torch.float32))
        pairs = enumerate(zip(images, baselines, strict=True))
        numbered = ((number, point) for number, (image, origin) in pairs for point in points(image, origin))
        while chunk := list(islice(numbered, batch_size)):
            numbers, stacked = zip(*chunk, strict=True)
            owners = torch.tensor(numbers, device=images.device)
            gradients = _gradients(classifier, torch.stack(stacked), targets[owners])
            sums.index_add_(0, owners, (gradients.abs() if absolute else gradients).to(sums.dtype))
    return sums.to(images.dtype)


def _gradients(classifier: nn.Module, points: Tensor, targets: Tensor) -> Tensor:
    """Each point's gradient of the score of its class."""
    points.requires_grad_()
    logits = check_logits(classifier(points), len(points))
    # An image's score depends on no other image, so the sum's gradient is each one's own.
    score = logits.gather(1, targets[:, None]).sum()
    found = torch.autograd.grad(score, points, allow_unused=True)[0] if score.requires_grad else None
    if found is None:
        raise ValueError(
            "classifier must be differentiable with respect to the images, but its logits have no gradient; it must "
            "neither detach them nor run under torch.no_grad()"
        )
    return found


def _noisy(points: Iterable[Tensor], noise_std: float, seed: int) -> Iterator[Tensor]:
    """The points, each with noise of its own that depends on the seed and on its place alone."""
    generator = torch.Generator().manual_seed(seed)
    for point in points:
        # On the CPU in float32, so that a seed means the same on every device and in every dtype.
        yield point + noise_std * torch.randn(point.shape, generator=generator, device="cpu").to(point)


def _noise_arguments(samples: int, noise_std: float, seed: int) -> tuple[int, float, int]:
    expected = "zero or a positive number, in units of the range [0, 1]"
    return (
        integer("samples", samples, low=1, high=_MOST),
        real("noise_std", noise_std, expected=expected, holds=lambda x: x >= 0),
        integer("seed", seed, low=0, high=2**63 - 1, expected="an integer in [0, 2**63)"),
    )


def _baselines(baseline: Tensor | float, images: Tensor) -> Tensor:
    """The baseline of each image: (N, C, H, W)."""
    check_images(images)
    if not isinstance(baseline, Tensor):
        expected = "a grey level in [0, 1], or a tensor that broadcasts to the images"
        level = real("baseline", baseline, expected=expected, holds=lambda x: 0 <= x <= 1)
        return torch.full_like(images.detach(), level)
    if not (baseline.is_floating_point() and baseline.isfinite().all()):
        raise ValueError("baseline must be a tensor of finite floats on the images' scale, [0, 1]")
    try:
        return baseline.detach().to(images).broadcast_to(images.shape)
    except RuntimeError:
        raise ValueError(
            f"baseline must broadcast to the images, {tuple(images.shape)}, as (channels, height, width) does; got "
            f"{tuple(baseline.shape)}"
        ) from None


def _classes(target: Target, count: int) -> list[int] | None:
    """The given classes, one an image; None for the predicted ones."""
    if target is None:
        return None
    expected = "a class number, one an image, or None for the predicted classes"
    if isinstance(target, int) or getattr(target, "ndim", None) == 0:
        return [integer("target", target, low=0, expected=expected)] * count
    given = several("target", target, expected=expected, most=_MOST)
    if len(given) != count:
        raise ValueError(f"target must be one class or one an image, got {len(given)} classes for {count} images")
    return [integer("target", each, low=0, expected=expected) for each in given]


def _targets(classifier: nn.Module, images: Tensor, classes: list[int] | None, batch_size: int) -> Tensor:
    """(N,) class numbers on the images' device, once the classifier has shown that it has these classes."""
    with torch.no_grad():
        if classes is None:
            parts = [
                check_logits(classifier(part), len(part)).argmax(dim=1) for part in torch.split(images, batch_size)
            ]
            return torch.cat(parts)
        known = check_logits(classifier(images[:1]), 1).shape[1]
    if max(classes) >= known:
        raise ValueError(f"target must lie in [0, {known}), the classes of the classifier, got {max(classes)}")
    return torch.tensor(classes, device=images.device)


def _check_maps(name: str, maps: object) -> None:
    """Refuse what is no (N, C, H, W) tensor of finite floats."""
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        raise TypeError(f"{name} must be a tensor of floats, got {shown(getattr(maps, 'dtype', maps))}")
    if maps.ndim != 4 or 0 in maps.shape[1:]:
        raise ValueError(f"{name} must have the shape (batch, channels, height, width), got {tuple(maps.shape)}")
    if not maps.isfinite().all():
        raise ValueError(f"{name} must be finite, but has NaN or infinity")
