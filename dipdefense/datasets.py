"""Labelled images: those that come with packages, folders keyed by WordNet id, and CIFAR-10."""

from __future__ import annotations

import functools
import importlib.resources
import importlib.util
import io
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dipdefense.classifiers import CIFAR10_CATEGORIES, IMAGENET_CATEGORIES, Preprocess, to_tensor

_SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}


class LabelledImage(NamedTuple):
    """One image: an id that names it in records, (3, H, W) float32 in [0, 1], and its class index."""

    id: str
    image: Tensor
    label: int


@dataclass(frozen=True)
class LabelledImages:
    """Several images of one size.

    Attributes:
        ids: one an image.
        images: (N, 3, H, W) float32 in [0, 1].
        labels: (N,) int64, class indices.
        categories: the classes' names, in order.
    """

    ids: tuple[str, ...]
    images: Tensor
    labels: Tensor
    categories: tuple[str, ...]


class ImageFiles(Dataset[LabelledImage]):
    """Image files with labels, in a folder or a zip archive, read when they are asked for.

    Args:
        root: the folder or archive.
        labels: from each file's path below it, with forward slashes, to its class index; the paths are the ids.
        categories: the classes' names, in order.
        preprocess: from an RGB PIL image to a (3, H, W) tensor in [0, 1]; none keeps the size.
    """

    def __init__(
        self,
        root: str | Path,
        labels: Mapping[str, int],
        *,
        categories: tuple[str, ...],
        preprocess: Callable[[Image.Image], Tensor] | None = None,
    ) -> None:
        self.root = Path(root)
        self.ids = tuple(labels)
        self.labels = tuple(labels.values())
        self.categories = categories
        self.preprocess = preprocess or to_tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> LabelledImage:
        """The image at this position.

        Raises:
            ValueError: the file holds no image that can be read; the message names it.
        """
        name = self.ids[index]
        try:
            with Image.open(io.BytesIO(self._read(name))) as picture:
                rgb = picture.convert("RGB")
        except Exception as error:  # broken bytes raise many kinds: OSError, SyntaxError, BadZipFile, zlib.error, …
            raise ValueError(f"{self.root / name} cannot be read as an image: {error}") from error
        return LabelledImage(name, self.preprocess(rgb), self.labels[index])

    def _read(self, name: str) -> bytes:
        if self.root.is_dir():
            return (self.root / name).read_bytes()
        return _archive(self.root, os.getpid()).read(name)

    def stack(self, indices: Sequence[int] | None = None) -> LabelledImages:
        """The images at these positions, or all of them, as one batch.

        Raises:
            ValueError: they differ in size, or one cannot be read.
        """
        items = [self[index] for index in (range(len(self)) if indices is None else indices)]
        sizes = sorted({tuple(item.image.shape) for item in items})
        if len(sizes) > 1:
            raise ValueError(
                f"images of one batch must have one size, got {sizes[0]} and {sizes[1]}; give the data set a "
                "preprocess, such as a classifier's"
            )
        return LabelledImages(
            tuple(item.id for item in items),
            torch.stack([item.image for item in items]),
            torch.tensor([item.label for item in items]),
            self.categories,
        )


def packaged_images(
    name: Literal["imagenet", "cifar10"] = "imagenet", *, preprocess: Callable[[Image.Image], Tensor] | None = None
) -> LabelledImages:
    """The 20 labelled images of ImageNet or CIFAR-10 that the package foolbox carries; nothing is downloaded.

    Args:
        name: which data set.
        preprocess: a classifier's; by default ImageNet's are resized to 256 and cropped to 224, as most classifiers
            want it, and CIFAR-10's keep their 32×32 pixels.

    Raises:
        ValueError: the name is unknown.
        ImportError: foolbox is not installed.

    Example:
        >>> packaged = packaged_images("cifar10")
        >>> packaged.images.shape, packaged.categories[packaged.labels[0]]
        (torch.Size([20, 3, 32, 32]), 'cat')
    """
    categories = {"imagenet": IMAGENET_CATEGORIES, "cifar10": CIFAR10_CATEGORIES}.get(name)
    if categories is None:
        raise ValueError(f'packaged images are "imagenet" and "cifar10", got {name!r}')
    # Found without importing it: only its files are wanted, and they need none of what it needs.
    package = importlib.util.find_spec("foolbox")
    if package is None or package.origin is None:
        raise ImportError('the packaged images are foolbox\'s: pip install "dipdefense[demo]"')
    folder = Path(package.origin).parent / "data"
    if name == "imagenet" and preprocess is None:
        preprocess = Preprocess(resize=256, crop=224)
    # Their names end in the class index: imagenet_00_243.jpg.
    labels = {path.name: int(path.stem.rsplit("_", 1)[1]) for path in sorted(folder.glob(f"{name}_*"))}
    return ImageFiles(folder, labels, categories=categories, preprocess=preprocess).stack()


@functools.cache
def wordnet_ids() -> tuple[str, ...]:
    """The WordNet ids of the 1,000 ImageNet classes, in class order.

    Example:
        >>> wordnet_ids()[162], IMAGENET_CATEGORIES[162]
        ('n02088364', 'beagle')
    """
    return tuple(importlib.resources.files("dipdefense").joinpath("imagenet_wnids.txt").read_text().split())


def image_folder(root: str | Path, *, preprocess: Callable[[Image.Image], Tensor] | None = None) -> ImageFiles:
    """ImageNet images in folders named by WordNet id, ``root/n01440764/anything.JPEG``.

    Any subset of the 1,000 classes will do: the indices are those of the whole set, whatever folders there are.

    Args:
        root: the folder.
        preprocess: a classifier's; none keeps each image's size.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: an image lies elsewhere than in a folder of ``root`` named by an ImageNet id.

    Example:
        >>> image_folder("imagenet/val")[0].label  # doctest: +SKIP
        0
    """
    classes = {wordnet_id: index for index, wordnet_id in enumerate(wordnet_ids())}
    return _labelled_folders(
        root, _files_below(Path(root)), classes, IMAGENET_CATEGORIES, preprocess, layout="n01440764/any.JPEG"
    )


def cifar10(
    root: str | Path,
    *,
    split: Literal["train", "test"] = "test",
    preprocess: Callable[[Image.Image], Tensor] | None = None,
) -> ImageFiles:
    """CIFAR-10 as image files in folders named by class, ``root/test/cat/0000.jpg``; root may be a zip archive.

    Args:
        root: the folder or archive.
        split: "train" or "test".
        preprocess: none keeps the 32×32 pixels as they are.

    Raises:
        FileNotFoundError: there is no such folder or archive, or no image of the split in it.
        ValueError: the split is unknown, the file is no zip archive, or an image lies in no class's folder.

    Example:
        >>> cifar10("cifar10.zip")[0].id  # doctest: +SKIP
        'test/airplane/0000.jpg'
    """
    if split not in ("train", "test"):
        raise ValueError(f'CIFAR-10 has the splits "train" and "test", got {split!r}')
    root = Path(root)
    if root.is_file():
        try:
            files = sorted(_archive(root, os.getpid()).namelist())
        except zipfile.BadZipFile as error:
            raise ValueError(f"{root} is neither a folder nor a zip archive: {error}") from error
    else:
        files = _files_below(root)
    classes = {name: index for index, name in enumerate(CIFAR10_CATEGORIES)}
    own = [file for file in files if PurePosixPath(file).parts[:1] == (split,)]
    return _labelled_folders(root, own, classes, CIFAR10_CATEGORIES, preprocess, layout=f"{split}/cat/any.jpg")


@functools.lru_cache(maxsize=2)
def _archive(path: Path, _process: int) -> zipfile.ZipFile:
    """An archive, kept open: to list its 60,000 files anew for every image would take a third of a second each.

    Each process has its own, as a forked one would share the position in the file with its parent.
    """
    return zipfile.ZipFile(path)


def _files_below(root: Path) -> list[str]:
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}" + (", only a file" if root.exists() else ""))
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def _labelled_folders(
    root: str | Path,
    files: Sequence[str],
    classes: Mapping[str, int],
    categories: tuple[str, ...],
    preprocess: Callable[[Image.Image], Tensor] | None,
    *,
    layout: str,
) -> ImageFiles:
    """Label every image file by the folder that it lies in, exactly as deep as in ``layout``, an example of a path.

    Without the depth, a folder that holds both the training and the validation images would be taken for one set.
    """
    labels = {}
    for file in files:
        path = PurePosixPath(file)
        if path.suffix.lower() not in _SUFFIXES:
            continue
        if path.parent.name not in classes or len(path.parts) != len(PurePosixPath(layout).parts):
            raise ValueError(
                f"images must lie in folders named by one of the {len(classes)} classes, as in {layout!r}; "
                f"the folder {path.parent.as_posix()!r} in {root} (of {file!r}) is no such folder"
            )
        labels[file] = classes[path.parent.name]
    if not labels:
        raise FileNotFoundError(
            f"there are no images ({', '.join(sorted(_SUFFIXES))}) in {root}, laid out as {layout!r}"
        )
    return ImageFiles(root, labels, categories=categories, preprocess=preprocess)
