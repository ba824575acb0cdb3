"""The four methods that make a saliency map.

Each decides at which points of an image the gradients are taken, and how their sum becomes a map.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

from torch import Tensor, nn

from dipdefense.arguments import integer
from dipdefense.saliency.gradients import MOST, Target, summed
from dipdefense.saliency.points import baselines, checked_noise, noisy


def gradient(classifier: nn.Module, images: Tensor, *, target: Target = None, batch_size: int = 32) -> Tensor:
    """The gradient of the class's score, with its sign.

    Args:
        classifier: see :mod:`dipdefense.saliency` for this and the next three.
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

    return summed(classifier, images, target, batch_size, points).to(images.dtype)


def integrated_gradients(
    classifier: nn.Module,
    images: Tensor,
    *,
    target: Target = None,
    baseline: Tensor | float = 0.0,
    steps: int = 50,
    batch_size: int = 32,
) -> Tensor:
    """Integrated gradients, with their sign.

    A map is (image − baseline) times the mean gradient on the path between them. Its values sum to the difference of
    the score between image and baseline, up to the error of the integration. Sundararajan et al. 2017, equation 3,
    takes the gradient at the right end of each step; here it is taken in the middle, and the error falls with the
    square of ``steps``.

    Args:
        classifier: see :mod:`dipdefense.saliency` for this and the next two.
        images: (N, C, H, W) floats in [0, 1].
        target: class of the score.
        baseline: where the path begins, black by default: a grey level in [0, 1], or a finite tensor that broadcasts to
            the images, such as (C, H, W). Values equal to the baseline have no attribution: with black, no black pixel
            is salient.
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
    steps = integer("steps", steps, low=1, high=MOST)
    origins = baselines(baseline, images)

    def points(image: Tensor, origin: Tensor) -> Iterator[Tensor]:
        for step in range(steps):
            yield origin + (step + 0.5) / steps * (image - origin)

    sums = summed(classifier, images, target, batch_size, points, origins)
    return ((images.detach() - origins) * sums / steps).to(images.dtype)


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
    """SmoothGrad: the mean gradient over noisy copies of the image, with its sign.

    The method is that of Smilkov et al. 2017, section 3.

    Args:
        classifier: see :mod:`dipdefense.saliency` for this and the next two.
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
    samples, noise_std, seed = checked_noise(samples, noise_std, seed)

    def points(image: Tensor, _: Tensor) -> Iterator[Tensor]:
        yield from noisy(repeat(image, samples), noise_std, seed)

    return (summed(classifier, images, target, batch_size, points) / samples).to(images.dtype)


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
    """MIG-SG: integrated gradients of absolute SmoothGrad gradients, without sign.

    It is equation 1 of Kattamis et al. 2019: |(x − x₀) / (m N) · Σ |∇F(x₀ + k/m · (x − x₀) + noise)||, summed over
    k = 0 … m and n = 1 … N. The sum has (m + 1) N terms and is divided by m N, as printed. The paper gives no m, N, σ
    or baseline; the defaults are this library's.

    Args:
        classifier: see :mod:`dipdefense.saliency` for this and the next two.
        images: (N, C, H, W) floats in [0, 1].
        target: class of the score; the predicted class is that of the image without noise.
        baseline: x₀, black by default; as in :func:`integrated_gradients`.
        steps: m, at least 1.
        samples: N, noisy copies of each of the m + 1 points; at least 1.
        noise_std: σ of the Gaussian noise, in units of the range [0, 1]. Noisy points are not clipped.
        seed: an integer in [0, 2**63).
        batch_size: images at once.

    Returns:
        (N, C, H, W), not negative.

    Example:
        >>> classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
        >>> mig_sg(classifier, torch.rand(2, 3, 8, 8), steps=2, samples=3).shape
        torch.Size([2, 3, 8, 8])
    """
    steps = integer("steps", steps, low=1, high=MOST)
    samples, noise_std, seed = checked_noise(samples, noise_std, seed)
    origins = baselines(baseline, images)

    def points(image: Tensor, origin: Tensor) -> Iterator[Tensor]:
        path = (origin + step / steps * (image - origin) for step in range(steps + 1) for _ in range(samples))
        yield from noisy(path, noise_std, seed)

    total = summed(classifier, images, target, batch_size, points, origins, absolute=True)
    return ((images.detach() - origins).to(total) / (steps * samples) * total).abs().to(images.dtype)
