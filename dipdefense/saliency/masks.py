"""Saliency maps as masks, and masks on images."""

from __future__ import annotations

import torch
from torch import Tensor

from dipdefense.arguments import real, shown
from dipdefense.checks import check_images


def mask(saliency: Tensor, percentile: float = 99) -> Tensor:
    """How salient each pixel of an image is, from 0 to 1.

    The map's absolute values are summed over the channels.

    Args:
        saliency: (N, C, H, W) maps of any of the methods.
        percentile: of each image's sums, in (0, 100]. From this value up the mask is 1, so that a few outliers do not
            leave the rest black.

    Returns:
        (N, 1, H, W) in [0, 1]; all 0 for a map of zeros.

    Raises:
        TypeError: ``saliency`` is not a tensor of floats.
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
    """Images darkened where their masks are 0, and unchanged where these are 1.

    Args:
        image: (N, C, H, W) floats in [0, 1].
        mask: (N, 1, H, W) in [0, 1], from :func:`mask`; or (1, 1, H, W) for all images.
        dark: the share of an image's brightness that is left where the mask is 0, in [0, 1].

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
            f"mask must be (1, 1, height, width) or one per image, {(len(image), 1, *image.shape[2:])} here; got "
            f"{tuple(mask.shape)}"
        )
    if mask.numel() and not 0 <= mask.min() <= mask.max() <= 1:
        raise ValueError("mask must lie in [0, 1]; make one of a saliency map with dipdefense.saliency.mask")
    return image * (dark + (1 - dark) * mask)


def _check_maps(name: str, maps: object) -> None:
    """Refuse anything but an (N, C, H, W) tensor of finite floats."""
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        raise TypeError(f"{name} must be a tensor of floats, got {shown(getattr(maps, 'dtype', maps))}")
    if maps.ndim != 4 or 0 in maps.shape[1:]:
        raise ValueError(f"{name} must have the shape (batch, channels, height, width), got {tuple(maps.shape)}")
    if not maps.isfinite().all():
        raise ValueError(f"{name} must be finite, but has NaN or infinity")
