"""Labelled images: packaged ones, folders, CIFAR-10, and released sets.

The released sets are the robust and non-robust ones of Ilyas et al. 2019.
"""

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
