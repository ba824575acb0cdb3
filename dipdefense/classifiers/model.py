"""A pretrained classifier with its normalisation inside, and its resize and crop beside it."""

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
"""Pixels of the shortest side that ``Preprocess`` takes: at the usual resize to 256 it is enlarged 32 times."""

MAX_ASPECT = 50
"""How many times longer than its shorter side a picture may be for ``Preprocess``, which keeps only its middle."""


@dataclass(frozen=True)
class Preprocess:
    """From a picture to a classifier's input: resize the shorter side, crop the centre, scale to [0, 1].

    A picture's orientation, transparency and depth follow the rules of ``dipdefense.files``: its EXIF turns it upright,
    its transparency is ignored, and 16-bit grey is scaled.

    Attributes:
        resize: pixels of the shorter side.
        crop: pixels of each side of the crop, at most ``resize``.
        interpolation: of the resize, always antialiased.

    Raises:
        ValueError: the crop is less than a pixel or larger than the resized picture.

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
        """(3, crop, crop) float32 in [0, 1] of any PIL image.

        Raises:
            TypeError: it is no PIL image.
            UnreadableImage: a ValueError. Its shorter side is below ``MIN_SIDE``, its longer one above ``MAX_ASPECT``
                times that, or its values have no scale.
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
                f"{size}; its longer side may have at most {MAX_ASPECT} times as many as its shorter one. Resized to "
                f"{self.resize} it would take {gigabytes:.2g} GB",
            )
        resized = transforms.resize(rgb, [self.resize], interpolation=self.interpolation, antialias=True)
        return pictures.to_tensor(transforms.center_crop(resized, [self.crop, self.crop]))


class Classifier(Logits):
    """A frozen network in eval mode, with its normalisation in front.

    Args:
        network: from normalised images to (N, classes) logits.
        name: the name that reports print.
        mean: of each channel, subtracted.
        std: of each channel, divided by.
        preprocess: the resize and crop that the network was trained for.
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
