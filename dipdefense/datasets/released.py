"""Data sets in the released format of Ilyas et al. 2019.

Each is a folder, such as ``d_robust_CIFAR`` or ``d_non_robust_CIFAR``, with two files written by ``torch.save``:
``CIFAR_ims``, a list of batches of images, and ``CIFAR_lab``, the list of their labels
(github.com/MadryLab/constructed-datasets).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipdefense.classifiers import CIFAR10_CATEGORIES
from dipdefense.datasets.images import LabelledImages

IMAGES_FILE, LABELS_FILE = "CIFAR_ims", "CIFAR_lab"
"""The two files of a set."""


def released_set(folder: str | Path) -> LabelledImages:
    """The images and labels of a released set; all 50,000 take 0.6 GB.

    The files are read with ``weights_only``, so a file of unknown origin cannot run code.

    Args:
        folder: has the files ``CIFAR_ims`` and ``CIFAR_lab``, each a list of tensors or one tensor.

    Returns:
        The images in the file's order, their ids "0", "1" and so on.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file has other content, the images are not (N, 3, H, W) floats in [0, 1], or the labels are not
            (N,) class indices of CIFAR-10.

    Example:
        >>> released_set("release_datasets/d_robust_CIFAR").images.shape  # doctest: +SKIP
        torch.Size([50000, 3, 32, 32])
    """
    folder = Path(folder)
    images, labels = _tensor(folder / IMAGES_FILE), _tensor(folder / LABELS_FILE)
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"{folder / IMAGES_FILE} must hold (N, 3, H, W) floats in [0, 1], got {tuple(images.shape)} {images.dtype}"
        )
    # NaN fails this comparison too.
    if len(images) and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"{folder / IMAGES_FILE} must hold floats in [0, 1], got {images.min():.6g} to {images.max():.6g}; divide "
            "bytes by 255, and undo a normalisation by mean and standard deviation"
        )
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"{folder / LABELS_FILE} must hold {len(images)} integers, one for each image, got {tuple(labels.shape)} "
            f"{labels.dtype}"
        )
    classes = len(CIFAR10_CATEGORIES)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"{folder / LABELS_FILE} must hold classes in [0, {classes}), got {labels.min()} to {labels.max()}"
        )
    ids = tuple(str(index) for index in range(len(images)))
    return LabelledImages(ids, images.float(), labels.long(), CIFAR10_CATEGORIES)


def _tensor(path: Path) -> Tensor:
    """The tensors of a file, concatenated."""
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}; a set is a folder with {IMAGES_FILE} and {LABELS_FILE}, as released at "
            "github.com/MadryLab/constructed-datasets"
        )
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of many kinds, for files of other formats
        raise ValueError(f"{path} cannot be read as a file of tensors only ({type(error).__name__})") from error
    parts = [found] if isinstance(found, Tensor) else found
    if not isinstance(parts, list | tuple) or not parts or not all(isinstance(part, Tensor) for part in parts):
        raise ValueError(f"{path} must hold a list of tensors, got {type(found).__name__}")
    if any(part.ndim == 0 or part.shape[1:] != parts[0].shape[1:] or part.dtype != parts[0].dtype for part in parts):
        raise ValueError(f"the tensors in {path} must be batches of one shape and dtype")
    return torch.cat(list(parts))
