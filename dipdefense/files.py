"""Image files to tensors and back, within limits; and atomic writes of any file.

The package reads every picture by the same rules:

- The EXIF orientation is applied, so pictures are upright. (torchvision's own loader ignores it.)
- Transparency is read separately and otherwise ignored, as in torchvision: the colours stored under it count.
- Of an animation or several pages, the first picture is read.
- Grey of more than 8 bits is scaled by the file's own depth, and 16-bit colour keeps its 16 bits.
- CMYK becomes RGB by Pillow's formula, without colour management.

A file that cannot be read for any reason raises ``UnreadableImage``.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from torch import Tensor

from dipdefense.pictures import colour, decode, layers, png_of_16_bits, quantised, shape

if TYPE_CHECKING:  # Pillow is imported where it is used: writing a report does not need it
    from PIL import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""The suffixes of image files, in lower case."""

MAX_BYTES = 2**28
"""The longest file that is read: 256 MiB, enough for ``MAX_PIXELS`` uncompressed."""

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
_TOO_LONG = f"it is longer than {MAX_BYTES:,} bytes"


class UnreadableImage(ValueError):  # noqa: N818 - the name says what is wrong
    """An image file that cannot be read; the message names the file and the reason.

    Attributes:
        path: the file, or the archive and the entry in it.
        reason: why it cannot be read.
        id: the image's id in its data set, or None for a file by itself.
    """

    # The reason has a default because DataLoader re-raises a worker's error from the message alone.
    def __init__(self, path: str, reason: str = "", *, id: str | None = None) -> None:
        super().__init__(f"{path} cannot be read as an image: {reason}" if reason else path)
        self.path = path
        self.reason = reason
        self.id = id

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.reason), {"id": self.id}


@dataclass(frozen=True)
class ImageFile:
    """The content of an image file.

    Attributes:
        name: the file's printable name.
        pixels: (1, H, W) for a greyscale file, else (3, H, W); float32 in [0, 1], upright.
        alpha: (1, H, W) float32 in [0, 1], 0 where the image is transparent; None if the file has no transparency.
        bits: of each value: 16 for grey of more than 8 bits and for 16-bit colour, else 8.
        icc: the colour profile of ``pixels``, if the file has one.
        notes: sentences on the parts of the file that are not in the fields above.
    """

    name: str
    pixels: Tensor
    alpha: Tensor | None = None
    bits: Literal[8, 16] = 8
    icc: bytes | None = None
    notes: tuple[str, ...] = ()

    @property
    def rgb(self) -> Tensor:
        """The pixels as (3, H, W); grey is repeated."""
        return self.pixels.repeat(3, 1, 1) if len(self.pixels) == 1 else self.pixels


def printable(name: str | os.PathLike[str]) -> str:
    r"""A file's name in which bytes that are not UTF-8 are escaped.

    The result can be printed, stored and hashed.

    Example:
        >>> print(printable(os.fsdecode(b"caf\xe9.png")))
        caf\udce9.png
    """
    return os.fspath(name).encode("utf-8", "backslashreplace").decode()


def read_image(source: Path | str | bytes, *, name: str = "") -> ImageFile:
    """Read an image file, or the bytes of one, by the rules above.

    Args:
        source: the file's path, or its content.
        name: the name in messages; by default the path.

    Raises:
        UnreadableImage: the file is missing, not a regular file, longer than ``MAX_BYTES``, in none of the formats
            ``pictures.FORMATS``, larger than ``pictures.MAX_PIXELS``, or broken; or its values exceed its depth.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_image(Path(folder, "a.png"), torch.ones(1, 4, 5))
        ...     image = read_image(Path(folder, "a.png"))
        >>> image.pixels.shape, image.rgb.shape, image.bits
        (torch.Size([1, 4, 5]), torch.Size([3, 4, 5]), 8)
    """
    if isinstance(source, bytes):
        name, content = name or f"<{len(source)} bytes>", source
    else:
        name, content = name or printable(source), read_bytes(source)
    with _naming(name):
        decoded = decode(content)
        pixels, alpha, bits = layers(decoded, content)
    picture, notes, _ = decoded
    icc = picture.info.get("icc_profile")
    if icc and icc[16:20] != (b"RGB " if len(pixels) == 3 else b"GRAY"):
        notes.append("its colour profile is for other channels than those that are read, and is left out")
        icc = None
    if picture.mode == "CMYK":
        notes.append("CMYK is read as RGB without colour management")
    return ImageFile(name, pixels, alpha, bits=bits, icc=icc or None, notes=tuple(notes))


def shape_of(content: bytes, *, name: str) -> tuple[int, int, int]:
    """The shape (channels, height, width) of ``read_image``'s ``pixels``.

    It comes from the file's header; only a TIFF is decoded.

    Raises:
        UnreadableImage: the header is not that of a readable image. A file that is broken further on passes, unless it
            is a TIFF.
    """
    with _naming(name):
        return shape(content)


def open_rgb(content: bytes, *, name: str) -> Image.Image:
    """A file's content as an 8-bit RGB picture, for a classifier's preprocessing.

    16-bit colour is reduced to its higher byte, as in every program that reads with Pillow.

    Raises:
        UnreadableImage: as ``read_image`` raises it.
    """
    with _naming(name):
        return to_rgb(decode(content).picture)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert any PIL image to 8-bit RGB by the rules above.

    The EXIF orientation is applied and the EXIF removed.

    Raises:
        TypeError: it is not a PIL image.
        UnreadableImage: its values exceed its depth, or Pillow cannot convert its mode.
    """
    from PIL import Image

    if not isinstance(picture, Image.Image):
        raise TypeError(f"a PIL image was expected, got {type(picture).__name__}; open files with PIL.Image.open")
    with _naming("the picture"):
        pixels = colour(picture)
    if pixels.mode == "F":
        pixels = Image.fromarray(quantised(np.asarray(pixels), bits=8))
    return pixels.convert("RGB")


def write_image(
    path: Path | str,
    pixels: Tensor,
    *,
    alpha: Tensor | None = None,
    bits: Literal[8, 16] = 8,
    icc: bytes | None = None,
    text: Mapping[str, str] | None = None,
) -> None:
    """Write a PNG atomically.

    To write an image like the file that it was read from, pass ``ImageFile``'s ``alpha``, ``bits`` and ``icc``. The PNG
    has no orientation entry, because ``read_image`` has applied it.

    Args:
        path: the file, with a name that ends in ".png"; a lossy format would change the pixels.
        pixels: (1, H, W) for greyscale or (3, H, W), floats in [0, 1].
        alpha: (1, H, W) floats in [0, 1], 0 where the image is transparent.
        bits: of each value, 8 or 16.
        icc: the colour profile.
        text: entries of the file's metadata.

    Raises:
        TypeError: ``pixels`` or ``alpha`` is not a tensor of floats.
        ValueError: the shapes do not fit, a value is NaN or outside [0, 1], ``bits`` is neither 8 nor 16, or the name
            does not end in ".png".
        OSError: the file cannot be written.
    """
    from PIL import Image, PngImagePlugin

    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"images are written as PNG alone, so give a name that ends in .png, not {printable(path)!r}")
    if bits not in (8, 16):
        raise ValueError(f"bits must be 8 or 16, got {bits!r}")
    channels = [_values(pixels, "pixels", channels=(1, 3))]
    if alpha is not None:
        channels.append(_values(alpha, "alpha", channels=(1,)))
        if pixels.shape[1:] != alpha.shape[1:]:
            raise ValueError(f"pixels and alpha must have one size, got {pixels.shape[1:]} and {alpha.shape[1:]}")
    integers = quantised(np.concatenate(channels, axis=2), bits=bits)
    metadata = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        metadata.add_text(key, value)
    with atomic(path) as file:
        if bits == 16:
            # Pillow writes 16 bits for grey only.
            profile = [] if icc is None else [(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))]
            file.write(png_of_16_bits(integers, [*profile, *(chunk[:2] for chunk in metadata.chunks)]))
        else:
            single = integers.shape[2] == 1
            picture = Image.fromarray(integers.squeeze(2) if single else integers)
            picture.save(file, format="PNG", icc_profile=icc, pnginfo=metadata)


def read_bytes(path: Path | str) -> bytes:
    """The content of a regular file of at most ``MAX_BYTES``.

    Raises:
        UnreadableImage: the file is missing, longer or without permission, or is a folder, a pipe or a device.
    """
    with _naming(printable(path)):
        status = os.stat(path)  # noqa: PTH116 - takes a str as well as a Path
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if status.st_size > MAX_BYTES:
            raise ValueError(_TOO_LONG)
        with open(path, "rb", opener=_open_at_once) as file:
            content: bytes = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(_TOO_LONG)
    return content


def read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a zip archive's entry of at most ``MAX_BYTES``.

    Raises:
        UnreadableImage: the entry is missing, longer, encrypted, broken, or compressed by another method than deflate.
    """
    with _naming(printable(f"{archive.filename}/{name}")):
        entry = archive.getinfo(name)
        # Python decompresses other methods in whole blocks, and a few bytes may become gigabytes.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"it is compressed by zip's method {entry.compress_type}; only deflate is read")
        if entry.file_size > MAX_BYTES:
            raise ValueError(_TOO_LONG)
        with archive.open(entry) as file:
            # A declared size that is too small truncates the content, and the checksum then fails.
            return file.read(entry.file_size)


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[BinaryIO]:
    """A binary file that replaces ``path`` when the block ends without an error.

    Until then the file at ``path`` does not change, and an error or an interrupt leaves it unchanged. The replaced
    file's permissions are kept. A link stays a link: its target is replaced.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: the file cannot be written, or ``path`` is a folder or a device; the error names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic(Path(folder, "a.bin")) as file:
        ...         _ = file.write(b"all of it")
        ...     Path(folder, "a.bin").read_bytes()
        b'all of it'
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(f"{path} is not a regular file and cannot be replaced; give another name")
    # In the same folder, because renaming is atomic only within a file system. The name is short because the target's
    # may have the greatest length that the file system allows.
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def remove_unfinished(folder: Path, *, older_than: float = 0) -> int:
    """Remove the temporary files that killed ``atomic`` blocks left in a folder.

    Args:
        folder: the folder. If other processes may be writing into it, set ``older_than``.
        older_than: the least age in seconds of files that are removed.

    Returns:
        The number of files removed.
    """
    found = 0
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if _TEMPORARY.fullmatch(path.name) and time.time() - path.lstat().st_mtime >= older_than:
                path.unlink()
                found += 1
    return found


def write_atomically(path: Path | str, data: bytes | str) -> None:
    """Write a file atomically, text as UTF-8.

    A reader finds the old content or the new one, never a part.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: the file cannot be written, or ``path`` is a folder or a device; the error names it.
    """
    content = data.encode() if isinstance(data, str) else data
    with atomic(path) as file:
        file.write(content)


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn any error inside into an ``UnreadableImage`` of this name."""
    try:
        yield
    # Broken bytes raise many kinds: OSError, SyntaxError, EOFError, struct.error, zlib.error, MemoryError, …
    except Exception as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise UnreadableImage(name, str(reason or type(error).__name__)) from error


def _open_at_once(path: str, flags: int) -> int:
    # Opening a pipe waits for a writer; the file may have become one since its status was read.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _values(tensor: Tensor, name: str, *, channels: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The checked values of a tensor to be written, (H, W, C)."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise TypeError(f"{name} must be a tensor of floats in [0, 1], got {getattr(tensor, 'dtype', type(tensor))}")
    if tensor.ndim != 3 or tensor.shape[0] not in channels or 0 in tensor.shape:
        expected = " or ".join(f"({number}, height, width)" for number in channels)
        raise ValueError(f"{name} must have the shape {expected}, got {tuple(tensor.shape)}")
    values: np.ndarray[Any, np.dtype[np.float32]] = tensor.detach().permute(1, 2, 0).float().cpu().numpy()
    if not -1e-4 <= values.min() <= values.max() <= 1 + 1e-4:  # tolerates rounding
        raise ValueError(f"{name} must lie in [0, 1], got values in [{values.min():g}, {values.max():g}]")
    return values
