"""Labelled image files: packaged ones, folders named by WordNet id, and CIFAR-10.

Files are read by the rules of ``dipdefense.files``: pictures are turned upright by their EXIF, transparency is ignored,
and 16-bit grey is scaled by its depth. Files with other suffixes than ``files.SUFFIXES`` are ignored.
"""

from __future__ import annotations

import collections
import functools
import importlib.resources
import importlib.util
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dipdefense import files
from dipdefense.classifiers import CIFAR10_CATEGORIES, IMAGENET_CATEGORIES, Preprocess
from dipdefense.files import UnreadableImage
from dipdefense.folders import files_below


class LabelledImage(NamedTuple):
    """One image: its id in records, (3, H, W) float32 in [0, 1], and its class index."""

    id: str
    image: Tensor
    label: int


@dataclass(frozen=True)
class LabelledImages:
    """Several images of one size.

    Attributes:
        ids: one for each image.
        images: (N, 3, H, W) float32 in [0, 1].
        labels: (N,) int64, class indices.
        categories: the classes' names, in order.
    """

    ids: tuple[str, ...]
    images: Tensor
    labels: Tensor
    categories: tuple[str, ...]


class ImageFiles(Dataset[LabelledImage]):
    """Labelled image files in a folder or a zip archive, read on access.

    Args:
        root: the folder or archive.
        labels: maps each file's path below ``root``, with forward slashes, to its class index. The paths are the ids;
            bytes that are not UTF-8 are escaped (``files.printable``).
        categories: the classes' names, in order.
        preprocess: from an RGB PIL image of 8 bits per channel to a (3, H, W) tensor in [0, 1]; None keeps the size and
            all bits of 16-bit files.

    Raises:
        ValueError: two paths have the same id.
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
        self.ids = tuple(map(files.printable, labels))
        self.labels = tuple(labels.values())
        self.categories = categories
        self.preprocess = preprocess
        self._names = tuple(labels)
        if len(set(self.ids)) < len(self.ids):
            twice = next(name for name, number in collections.Counter(self.ids).items() if number > 1)
            raise ValueError(f"more than one file in {files.printable(root)} would have the id {twice!r}; rename one")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> LabelledImage:
        """The image at this position.

        Raises:
            UnreadableImage: the file cannot be read, or ``preprocess`` refuses the image. This ValueError names the
                file and carries the id, so a run can leave the image out.
        """
        path = files.printable(self.root / self._names[index])
        try:
            content = self._read(self._names[index])
            if self.preprocess is None:
                image = files.read_image(content, name=path).rgb
            else:
                image = self.preprocess(files.open_rgb(content, name=path))
        except UnreadableImage as error:
            raise UnreadableImage(path, error.reason, id=self.ids[index]) from error
        return LabelledImage(self.ids[index], image, self.labels[index])

    def _read(self, name: str) -> bytes:
        if self.root.is_dir():
            return files.read_bytes(self.root / name)
        return files.read_entry(_archive(self.root), name)

    def stack(self, indices: Sequence[int] | None = None) -> LabelledImages:
        """The images at these positions, or all images, as one batch.

        Raises:
            UnreadableImage: an image cannot be read.
            ValueError: they differ in size, or there are none.
        """
        items = [self[index] for index in (range(len(self)) if indices is None else indices)]
        if not items:
            raise ValueError("a batch needs at least one image, got no indices")
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
    """The 20 labelled images of ImageNet or CIFAR-10 in the package foolbox.

    Nothing is downloaded.

    Args:
        name: the data set.
        preprocess: a classifier's. By default ImageNet images are resized to 256 and cropped to 224 for most
            classifiers, and CIFAR-10 images keep their 32×32 pixels.

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
    # Found without being imported: its files are enough, and its imports are slow.
    package = importlib.util.find_spec("foolbox")
    if package is None or package.origin is None:
        raise ImportError('the packaged images are foolbox\'s: pip install "dipdefense[demo]"')
    folder = Path(package.origin).parent / "data"
    if name == "imagenet" and preprocess is None:
        preprocess = Preprocess(resize=256, crop=224)
    # File names end in the class index: imagenet_00_243.jpg.
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
    """ImageNet images in folders named by WordNet id: ``root/n01440764/any.JPEG``.

    A subset of the 1,000 classes is enough; class indices are always those of the whole set.

    Args:
        root: the folder.
        preprocess: a classifier's; None keeps each image's size.

    Raises:
        FileNotFoundError: the folder does not exist or has no images.
        OSError: a folder cannot be listed, such as one without permission.
        ValueError: an image is not in a folder of ``root`` named by an ImageNet id, or a link leads back to a folder
            that contains it.

    Example:
        >>> image_folder("imagenet/val")[0].label  # doctest: +SKIP
        0
    """
    classes = {wordnet_id: index for index, wordnet_id in enumerate(wordnet_ids())}
    return _labelled_folders(
        root, files_below(Path(root)), classes, IMAGENET_CATEGORIES, preprocess, layout="n01440764/any.JPEG"
    )


def cifar10(
    root: str | Path,
    *,
    split: Literal["train", "test"] = "test",
    preprocess: Callable[[Image.Image], Tensor] | None = None,
) -> ImageFiles:
    """CIFAR-10 as image files in folders named by class, ``root/test/cat/0000.jpg``.

    A subset of the classes is enough; a warning names the classes without images.

    Args:
        root: the folder or zip archive.
        split: "train" or "test".
        preprocess: a classifier's; None keeps the 32×32 pixels.

    Raises:
        FileNotFoundError: the folder or archive does not exist, or has no images of the split.
        OSError: a folder cannot be listed, such as one without permission.
        ValueError: the split is unknown, the file is not a zip archive, an image is not in a class's folder, or a link
            leads back to a folder that contains it.

    Example:
        >>> cifar10("cifar10.zip")[0].id  # doctest: +SKIP
        'test/airplane/0000.jpg'
    """
    if split not in ("train", "test"):
        raise ValueError(f'CIFAR-10 has the splits "train" and "test", got {split!r}')
    root = Path(root)
    if root.is_file():
        try:
            names = sorted(_archive(root).namelist())
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
            raise ValueError(f"{root} is neither a folder nor a zip archive that can be read: {error}") from error
    else:
        names = files_below(root)
    classes = {name: index for index, name in enumerate(CIFAR10_CATEGORIES)}
    own = [name for name in names if PurePosixPath(name).parts[:1] == (split,)]
    images = _labelled_folders(root, own, classes, CIFAR10_CATEGORIES, preprocess, layout=f"{split}/cat/any.jpg")
    absent = [name for name, index in classes.items() if index not in images.labels]
    if absent:
        warnings.warn(f"{root} has no {split} images of {', '.join(absent)}; the other classes are used", stacklevel=2)
    return images


def _archive(path: Path) -> zipfile.ZipFile:
    """A zip archive, kept open.

    Listing its 60,000 files again would take a third of a second for every image. Each process opens its own, because a
    forked one would share the file position with its parent.
    """
    path = path.resolve()
    file = path.stat()
    return _opened(path, file.st_mtime_ns, file.st_size, os.getpid())


@functools.lru_cache(maxsize=2)
def _opened(path: Path, _modified: int, _size: int, _process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _labelled_folders(
    root: str | Path,
    names: Sequence[str],
    classes: Mapping[str, int],
    categories: tuple[str, ...],
    preprocess: Callable[[Image.Image], Tensor] | None,
    *,
    layout: str,
) -> ImageFiles:
    """Label each image file by its folder, as in the example path ``layout``.

    The folder must be exactly as deep. Without this condition a folder with both training and validation images would
    pass for one set.
    """
    labels = {}
    for name in names:
        path = PurePosixPath(name)
        if path.suffix.lower() not in files.SUFFIXES or name.endswith("/"):  # a folder in an archive
            continue
        if path.parent.name not in classes or len(path.parts) != len(PurePosixPath(layout).parts):
            raise ValueError(
                f"images must lie in folders named by one of the {len(classes)} classes, as in {layout!r}; "
                f"the folder {path.parent.as_posix()!r} in {root} (of {name!r}) is none of them"
            )
        labels[name] = classes[path.parent.name]
    if not labels:
        raise FileNotFoundError(f"{root} has no images ({', '.join(files.SUFFIXES)}) laid out as {layout!r}")
    return ImageFiles(root, labels, categories=categories, preprocess=preprocess)
