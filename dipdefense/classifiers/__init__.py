"""Pretrained classifiers whose input is images in [0, 1].

`Logits` makes one of any other library's model.
"""

from dipdefense.classifiers.adapters import Logits
from dipdefense.classifiers.cifar10 import CIFAR10_CATEGORIES, untrained_cifar10
from dipdefense.classifiers.loading import load
from dipdefense.classifiers.model import IMAGENET_CATEGORIES, MAX_ASPECT, MIN_SIDE, Classifier, Preprocess
from dipdefense.pictures import to_tensor

__all__ = [
    "CIFAR10_CATEGORIES",
    "IMAGENET_CATEGORIES",
    "MAX_ASPECT",
    "MIN_SIDE",
    "Classifier",
    "Logits",
    "Preprocess",
    "load",
    "to_tensor",
    "untrained_cifar10",
]
