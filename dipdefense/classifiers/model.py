"""Pretrained classifiers, each with its preprocessing.

The normalisation is inside the classifier; the resize and crop are beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from dipdefense import files, pictures
from dipdefense.classifiers.adapters import Logits

IMAGENET_CATEGORIES: tuple[str, ...] = tuple(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])
"""The names of the 1,000 ImageNet classes, in class order."""


MIN_SIDE = 8
"""The shortest side in pixels that ``Preprocess`` accepts; the usual resize to 256 enlarges it 32 times."""

MAX_ASPECT = 50
"""The largest ratio of a picture's sides that ``Preprocess`` accepts; it keeps only the middle."""


@dataclass(frozen=True)
class Preprocess:
    """A classifier's preprocessing: resize, crop the centre, scale to [0, 1].

    Pictures are read by the rules of ``dipdefense.files``: turned upright by their EXIF, without their transparency,
    and with 16-bit grey scaled by its depth.

    Attributes:
        resize: the shorter side in pixels after the resize.
        crop: height and width of the crop in pixels, at most ``resize``.
        interpolation: of the resize, which is always antialiased.

    Raises:
        ValueError: the crop is smaller than a pixel or larger than ``resize``.

    Example:
        >>> Preprocess(resize=256, crop=224)(Image.new("RGB", (300, 400))).shape
        torch.Size([3, 224, 224])
    """

    resize: int
    crop: int
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(
                f"crop must lie in [1, resize={self.resize}], got {self.crop}; a crop needs pixels around it"
            )

    def __call__(self, picture: Image.Image) -> Tensor:
        """Any PIL image as (3, crop, crop) float32 in [0, 1].

        Raises:
            TypeError: it is not a PIL image.
            UnreadableImage: a ValueError. The shorter side is below ``MIN_SIDE``, the longer one above ``MAX_ASPECT``
                times the shorter, or the values exceed the picture's depth.
        """
        rgb = files.to_rgb(picture)
        shorter, longer = sorted(rgb.size)
        size = f"it has {rgb.width}×{rgb.height} pixels"
        if shorter < MIN_SIDE:
            raise files.UnreadableImage("the picture", f"{size}; each side must have at least {MIN_SIDE}")
        if longer > MAX_ASPECT * shorter:
            gigabytes = self.resize**2 * longer / shorter * 12 / 1e9
            raise files.UnreadableImage(
                "the picture",
                f"{size}; its longer side may be at most {MAX_ASPECT} times its shorter one. Resized to {self.resize} "
                f"it would take {gigabytes:.2g} GB",
            )
        resized = transforms.resize(rgb, [self.resize], interpolation=self.interpolation, antialias=True)
        return pictures.to_tensor(transforms.center_crop(resized, [self.crop, self.crop]))


class Classifier(Logits):
    """A frozen network in eval mode, with its normalisation in front.

    Args:
        network: from normalised images to (N, classes) logits.
        name: the name in reports.
        mean: subtracted from each channel.
        std: the divisor of each channel.
        preprocess: the resize and crop that the network expects.
        categories: the classes' names, in order.

    Shape:
        (N, 3, H, W) floats in [0, 1] to (N, classes) logits; gradients flow to the images.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        preprocess: Preprocess,
        categories: tuple[str, ...] = (),
    ) -> None:
        super().__init__(network, mean=mean, std=std)
        self.name = name
        self.preprocess = preprocess
        self.categories = categories
        self.eval().requires_grad_(False)
