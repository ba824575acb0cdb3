"""The baseline of Xie et al. 2017: random resizing and random padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dipdefense.arguments import choice, integer, shown
from dipdefense.checks import OutOfRange, Seed, check_images, check_logits, check_seed, resolve_seeds
from dipdefense.compiler import refuse_export

# They resize 299 pixels to r in [299, 331) and pad to 331; other sizes keep that proportion.
_SIDE, _PADDED_SIDE = 299, 331

# Their code pads with 0 where images lie in [-1, 1].
_MID_GREY = 0.5

# 331/299 of anything smaller rounds to the side itself, which leaves nothing to choose.
_MIN_SIDE = 5

# More passes than anybody averages; the scores of all are kept to the end.
_MAX_PASSES = 1_000_000


def padded_size(height: int, width: int) -> tuple[int, int]:
    """The height and width, in pixels, of every defended image of this size.

    Raises:
        ValueError: a side is below 5 pixels.

    Example:
        >>> padded_size(299, 299), padded_size(224, 224), padded_size(240, 320)
        ((331, 331), (248, 248), (266, 354))
    """
    if min(height, width) < _MIN_SIDE:
        raise ValueError(
            f"images must be at least {_MIN_SIDE} pixels high and wide, got {height}×{width}; enlarge them first"
        )
    return round(height * _PADDED_SIDE / _SIDE), round(width * _PADDED_SIDE / _SIDE)


def random_resize_pad(images: Tensor, *, seed: Seed = None, out_of_range: OutOfRange = "raise") -> Tensor:
    """Resize every image to a random size and pad it at a random place.

    The method is that of Xie et al. 2017, section 3, and the padding is mid-grey. Every image has a random sample of
    its own. At 224×224 a nearest-neighbour resize goes to a size r, uniform on [224, 248); the place in the padded
    image is one of (248 - r + 1)², all equally likely. Of a rectangular image r is the longer side, and the shorter one
    keeps the proportion. Gradients flow to ``images``.

    Args:
        images: (N, C, H, W) floats in [0, 1], H and W at least 5 pixels.
        seed: an integer for every image, whatever its position; or one per image; or None for fresh ones from torch's
            default generator of the CPU. With a seed, no global generator is touched.
        out_of_range: "raise" refuses values outside [0, 1]; "clip" clips finite ones and keeps their gradient.

    Returns:
        (N, C, H', W') with H' and W' from `padded_size`, in the dtype and on the device of ``images``.

    Raises:
        TypeError, ValueError: before any work, if an argument is not as described.

    Example:
        >>> random_resize_pad(torch.rand(2, 3, 224, 224), seed=0).shape
        torch.Size([2, 3, 248, 248])
    """
    images = check_images(images, out_of_range=out_of_range)
    return _resize_pad(images, _generators(seed, len(images)))


class RandomResizePad(nn.Module):
    """`random_resize_pad` as a layer in front of a classifier of images of any size.

    The output is larger than the input, which suits convolutional classifiers with global pooling. The module has no
    parameters and an empty ``state_dict``; ``eval()`` changes nothing. Its gradient is exact for the samples of the
    same call. An attacker who averages it over samples (EOT) brings the accuracy down to 0 % (Athalye et al. 2018).

    Args:
        seed: as in `random_resize_pad`. None, the default, samples afresh at every call, as a deployed defence must.
        out_of_range: as in `random_resize_pad`.

    Raises:
        TypeError, ValueError: an argument is outside its range, at construction; the images are not as described, at
            the call.
        RuntimeError: a call is being traced or exported.

    Shape:
        (N, C, H, W) floats in [0, 1], from 5 pixels a side, to (N, C, H', W'); 299 becomes 331 and 224 becomes 248.

    Example:
        >>> defended = nn.Sequential(RandomResizePad(), nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> defended(torch.rand(2, 3, 224, 224)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *, seed: Seed = None, out_of_range: OutOfRange = "raise") -> None:
        super().__init__()
        choice("out_of_range", out_of_range, get_args(OutOfRange))
        self.seed = check_seed(seed)
        self.out_of_range = out_of_range

    def forward(self, images: Tensor) -> Tensor:
        """Randomise: (N, C, H, W) in [0, 1] to (N, C, H', W')."""
        refuse_export("RandomResizePad")
        return random_resize_pad(images, seed=self.seed, out_of_range=self.out_of_range)

    def extra_repr(self) -> str:
        """The settings that a printed model shows."""
        return f"seed={self.seed}, out_of_range={self.out_of_range!r}"


class RandomizationDefence(nn.Module):
    """A classifier behind `random_resize_pad`, averaged over several passes.

    The softmax is averaged, as in their challenge submission (30 passes), and the mean's logarithm is returned: its
    softmax is the mean itself, and losses and attacks that expect logits work. The submission also flips at random,
    samples r from [310, 331) and adds an auxiliary head, none of which is in the method's section of the paper.

    The literature quotes the accuracy of one pass, which classifies as ``nn.Sequential(RandomResizePad(), classifier)``
    does. The gradient is that of the averaged output, so an attack on this module averages over samples already.

    Args:
        classifier: from images in [0, 1] of any size to (N, classes) logits.
        passes: random samples per image.
        seed: as in `random_resize_pad`; one seed fixes all passes, which still differ from each other.
        out_of_range: as in `random_resize_pad`.

    Raises:
        TypeError, ValueError: an argument is outside its range, at construction; the images are not as described,
            at the call and before any work; or the classifier returns no (N, classes) tensor, at the call.
        RuntimeError: a call is being traced or exported.

    Shape:
        (N, C, H, W) floats in [0, 1], from 5 pixels a side, to (N, classes) log probabilities.

    Example:
        >>> classifier = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> defended = RandomizationDefence(classifier, passes=3, seed=0)
        >>> defended(torch.rand(2, 3, 32, 32)).exp().sum(dim=1).allclose(torch.ones(2))
        True
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        passes: int = 30,
        seed: Seed = None,
        out_of_range: OutOfRange = "raise",
    ) -> None:
        super().__init__()
        choice("out_of_range", out_of_range, get_args(OutOfRange))
        if not isinstance(classifier, nn.Module):
            raise TypeError(f"classifier must be a torch.nn.Module, got {shown(classifier)}")
        self.classifier = classifier
        self.passes = integer("passes", passes, low=1, high=_MAX_PASSES)
        self.seed = check_seed(seed)
        self.out_of_range = out_of_range

    def forward(self, images: Tensor) -> Tensor:
        """Classify: (N, C, H, W) in [0, 1] to (N, classes) log probabilities."""
        refuse_export("RandomizationDefence")
        images = check_images(images, out_of_range=self.out_of_range)
        generators = _generators(self.seed, len(images))
        scores = [F.log_softmax(self._logits(_resize_pad(images, generators)), dim=1) for _ in range(self.passes)]
        return torch.stack(scores).logsumexp(dim=0) - math.log(self.passes)

    def _logits(self, images: Tensor) -> Tensor:
        return check_logits(self.classifier(images), len(images))

    def extra_repr(self) -> str:
        """The settings that a printed model shows."""
        return f"passes={self.passes}, seed={self.seed}, out_of_range={self.out_of_range!r}"


def _generators(seed: Seed, count: int) -> list[torch.Generator]:
    """One per image, on the CPU, so that a seed means the same on every device."""
    return [torch.Generator().manual_seed(seed) for seed in resolve_seeds(seed, count)]


def _resize_pad(images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    height, width = images.shape[2:]
    padded_height, padded_width = padded_size(height, width)
    longer, padded_longer = max(height, width), max(padded_height, padded_width)
    # The empty part lets an empty batch be concatenated like any other.
    defended = [images.new_empty(0, images.shape[1], padded_height, padded_width)]
    for image, generator in zip(images, generators, strict=True):
        size = _sample(longer, padded_longer, generator)
        # At most 331/299 of the side before rounding, so it always fits.
        resized_height, resized_width = round(height * size / longer), round(width * size / longer)
        spare_rows, spare_columns = padded_height - resized_height, padded_width - resized_width
        top, left = _sample(0, spare_rows + 1, generator), _sample(0, spare_columns + 1, generator)
        resized = F.interpolate(image[None], size=(resized_height, resized_width), mode="nearest")
        defended.append(F.pad(resized, (left, spare_columns - left, top, spare_rows - top), value=_MID_GREY))
    return torch.cat(defended)


def _sample(low: int, high: int, generator: torch.Generator) -> int:
    """A uniform integer from [low, high)."""
    return cast(int, torch.randint(low, high, (), generator=generator, device="cpu").item())
