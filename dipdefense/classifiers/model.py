"""A pretrained classifier with its normalisation inside, and its resize and crop beside it."""

from __future__ import annotations

from dataclasses import dataclass

import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from dipdefense.classifiers.adapters import Logits

IMAGENET_CATEGORIES: tuple[str, ...] = tuple(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])
"""The names of the 1,000 ImageNet classes, in class order."""


@dataclass(frozen=True)
class Preprocess:
    """What turns a picture into a classifier's input: resize the shorter side, crop the centre, scale to [0, 1].

    Attributes:
        resize: pixels of the shorter side.
        crop: pixels of each side of the crop.
        interpolation: of the resize, always antialiased.

    Example:
        >>> Preprocess(resize=256, crop=224)(Image.new("RGB", (300, 400))).shape
        torch.Size([3, 224, 224])
    """

    resize: int
    crop: int
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    def __call__(self, picture: Image.Image) -> Tensor:
        """(3, crop, crop) float32 in [0, 1] of any PIL image; grey, palette and CMYK images become RGB."""
        rgb = picture.convert("RGB")
        resized = transforms.resize(rgb, [self.resize], interpolation=self.interpolation, antialias=True)
        cropped = transforms.center_crop(resized, [self.crop, self.crop])
        return to_tensor(cropped)


def to_tensor(picture: Image.Image) -> Tensor:
    """(3, H, W) float32 in [0, 1] of an RGB image."""
    pixels: Tensor = transforms.pil_to_tensor(picture)
    return pixels / 255


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
