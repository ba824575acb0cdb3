"""Labelled images: packaged ones, folders, CIFAR-10, and the robust and non-robust sets of Ilyas et al. 2019."""

from dipdefense.datasets.images import (
    ImageFiles,
    LabelledImage,
    LabelledImages,
    cifar10,
    image_folder,
    packaged_images,
    wordnet_ids,
)
from dipdefense.datasets.released import released_set

__all__ = [
    "ImageFiles",
    "LabelledImage",
    "LabelledImages",
    "cifar10",
    "image_folder",
    "packaged_images",
    "released_set",
    "wordnet_ids",
]
