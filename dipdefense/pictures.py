"""Pillow's pictures as RGB or grey, by the rules of ``dipdefense.files``.

Pillow is imported where it is used, because writing a report through ``files`` does not need it.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""The formats that are read, recognised by content and not by name.

Pillow reads more, but starts other programs for some, such as Ghostscript for EPS."""

MAX_PIXELS = 2**26
"""The most pixels of a picture, 8192×8192: 0.8 GB as three channels of float32, and 2 GB while it is read."""

# ``with_palette``: the number of greys, and the largest difference of the channels of a pixel that counts as grey.
_GREYS, _GREYISH = 64, 4

_ORIENTATION = 0x0112
# Tags of TIFF 6.0.
_BITS, _PHOTOMETRIC, _PLANES, _TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT = 258, 262, 284, 322, 323, 339
_SIDEWAYS = (2, 4, 5, 6)  # Pillow's ROTATE_90, ROTATE_270, TRANSPOSE and TRANSVERSE
_GREY = ("1", "L", "LA", "La")

# Pillow's layouts of 16-bit colour, of which it keeps the higher byte. The last letter is the byte order.
_DEEP = re.compile(r"(?:RGB|RGBX|RGBA);16[BLN]")
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


class Decoded(NamedTuple):
    """A file's first picture.

    Attributes:
        picture: as Pillow decodes it.
        notes: on the parts of the file that it lacks.
        deep: whether the file has 16-bit colour or transparency, whose lower bytes ``layers`` reads.
    """

    picture: Image.Image
    notes: list[str]
    deep: bool


def decode(content: bytes) -> Decoded:
    """The first picture in a file's content.

    Raises:
        ValueError: the content is empty, in none of ``FORMATS``, or has more than ``MAX_PIXELS``.
        Exception: of many kinds, for a file that is broken.
    """
    picture = _opened(content)
    notes = []
    if getattr(picture, "is_animated", False):
        notes.append("it holds several pictures, of which the first is read")
    layouts = _layouts(picture)
    deep = picture.format in ("PNG", "TIFF") and ("LA;16B" in layouts or _DEEP.search(layouts) is not None)
    if picture.mode in ("RGB", "RGBA", "CMYK") and ";16" in layouts and not deep:
        notes.append("its channels have 16 bits, of which 8 are read")
    picture.load()
    # Pillow turns 16-bit grey with transparency into colour.
    return Decoded(picture.convert("LA") if "LA;16" in layouts else picture, notes, deep)


def shape(content: bytes) -> tuple[int, int, int]:
    """The upright shape (channels, height, width) of a file's first picture.

    The picture is decoded only if it is a TIFF.

    Raises:
        ValueError, Exception: as ``decode`` raises them.
    """
    picture = _opened(content)
    if picture.format == "TIFF":
        picture.load()  # Pillow turns it upright here; before, its size and its orientation disagree
    grey = picture.mode in (*_GREY, "F") or picture.mode.startswith("I") or "LA;16" in _layouts(picture)
    turned = _turn(picture) in _SIDEWAYS
    width, height = reversed(picture.size) if turned else picture.size
    return 1 if grey else 3, height, width


def colour(picture: Image.Image) -> Image.Image:
    """The upright picture without transparency, in mode "RGB", "L" or "F".

    "L" is for grey, and "F", in [0, 1], for grey of more than 8 bits.

    Raises:
        ValueError: values exceed the picture's depth, or Pillow cannot convert its mode.
    """
    from PIL import Image

    if picture.mode == "F" or picture.mode.startswith("I"):
        return _upright(Image.fromarray(_deep_grey(picture)), picture)
    # Converting to RGBA first avoids Pillow's warning about a palette's transparency.
    opaque = picture.convert("RGBA") if picture.mode == "P" and "transparency" in picture.info else picture
    return _upright(opaque.convert("L" if picture.mode in _GREY else "RGB"), picture)


def opacity(picture: Image.Image) -> Image.Image | None:
    """The upright "L" picture of each pixel's opacity, 255 for opaque.

    It is None for a picture without transparency.
    """
    from PIL import Image

    transparent = picture.info.get("transparency")
    if picture.mode.startswith("I") and transparent is not None:
        opaque = np.not_equal(np.asarray(picture), transparent)
        return _upright(Image.fromarray(opaque.astype(np.uint8) * 255), picture)
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or transparent is not None:
        return _upright(picture.convert("RGBA").getchannel("A"), picture)
    return None


def layers(decoded: Decoded, content: bytes) -> tuple[Tensor, Tensor | None, Literal[8, 16]]:
    """A file's pixels, its opacity or None, and the bits of their values.

    Args:
        decoded: the result of ``decode``.
        content: the file's content.

    Returns:
        (1 or 3, H, W) and (1, H, W), upright float32 in [0, 1], and 8 or 16.
    """
    picture = decoded.picture
    if not decoded.deep:
        pixels, alpha = colour(picture), opacity(picture)
        opaque = None if alpha is None else to_tensor(alpha)
        return to_tensor(pixels), opaque, 16 if pixels.mode == "F" else 8
    channels = _sixteen_bits(picture, content)
    transparent = picture.info.get("transparency")
    tensor = torch.from_numpy(channels.transpose(2, 0, 1).astype(np.float32)) / 65535
    if len(tensor) in (2, 4):
        return tensor[:-1], tensor[-1:], 16
    if transparent is None:
        return tensor, None, 16
    return tensor, torch.from_numpy((channels != transparent).any(axis=2))[None].float(), 16


def _sixteen_bits(picture: Any, content: bytes) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """A file's upright 16-bit channels, (H, W, C).

    Pillow reduces them to their higher bytes. Decoding with the opposite byte order yields the lower bytes. Grey with
    alpha is decoded as the four bytes of RGBA.
    """
    again: Any = _opened(content)
    grey = "LA;16B" in _layouts(again)
    again.tile = [_with_layout(tile, grey) for tile in again.tile]
    again.load()
    pixels = np.asarray(_upright(again.copy(), again))
    if grey:
        return np.asarray(np.ascontiguousarray(pixels).view(">u2"), dtype=np.uint16)
    channels = np.asarray(_upright(picture.copy(), picture)).astype(np.uint16)
    channels <<= 8
    channels |= pixels
    return channels


def _with_layout(tile: Any, grey: bool) -> Any:
    """A tile with the layout of the lower bytes.

    A tile is Pillow's description of how a part of a file is decoded.
    """
    *place, arguments = tile
    layout, *others = [arguments] if isinstance(arguments, str) else arguments
    layout = "RGBA" if grey else layout[:-1] + _OTHER_BYTE[layout[-1]]
    return getattr(type(tile), "_make", tuple)((*place, (layout, *others) if others else layout))


def png_of_16_bits(integers: np.ndarray[Any, np.dtype[np.uint16]], chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A PNG of (H, W, C) integers: grey, grey with alpha, RGB or RGBA.

    The chunks of metadata follow its header.
    """
    import png

    height, width, channels = integers.shape
    writer = png.Writer(width, height, greyscale=channels < 3, alpha=channels in (2, 4), bitdepth=16)
    plain, complete = io.BytesIO(), io.BytesIO()
    writer.write_packed(plain, (row.tobytes() for row in integers.astype(">u2")))
    head, *rest = png.Reader(bytes=plain.getvalue()).chunks()
    png.write_chunks(complete, [head, *chunks, *rest])
    return complete.getvalue()


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture of 8 bits, or of floats in [0, 1], as (C, H, W) float32 in [0, 1]."""
    pixels = torch.from_numpy(np.array(picture))
    pixels = (pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]).contiguous()
    return pixels if pixels.is_floating_point() else pixels.float() / 255


def quantised(values: np.ndarray[Any, np.dtype[np.float32]], *, bits: int) -> np.ndarray[Any, Any]:
    """Values clipped to [0, 1], scaled and rounded to integers of 8 or 16 bits."""
    return np.asarray(np.rint(values.clip(0, 1) * (2**bits - 1)), dtype=np.uint8 if bits == 8 else np.uint16)


def with_palette(png: bytes) -> bytes:
    """The PNG of a page, reduced to 256 colours.

    It looks the same at a third to a half of the size. 64 of the colours are greys, which keeps grey parts free of a
    tinge; the others are the picture's own.
    """
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    grey = np.ptp(pixels, axis=2) <= _GREYISH
    places = np.rint(pixels.mean(axis=2) * ((_GREYS - 1) / 255)).astype(np.uint8)
    palette = np.repeat(np.rint(np.linspace(0, 255, _GREYS)).astype(np.uint8), 3).tolist()
    if not grey.all():
        coloured = Image.fromarray(pixels[~grey][None]).quantize(256 - _GREYS, dither=Image.Dither.NONE)
        places[~grey] = np.asarray(coloured)[0] + _GREYS
        palette += (coloured.getpalette() or [])[: 3 * (256 - _GREYS)]
    reduced = Image.fromarray(places, mode="P")
    reduced.putpalette(palette)
    content = io.BytesIO()
    reduced.save(content, "PNG", optimize=True)
    return content.getvalue()


def _opened(content: bytes) -> Image.Image:
    """The first picture in a file's content, not yet decoded.

    Raises:
        ValueError: the content is empty, in none of ``FORMATS``, or beyond the limits.
    """
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise ValueError("it is empty")
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:  # Pillow's own limit, which a program may lower
        raise ValueError(f"it has more than {MAX_PIXELS:,} pixels, {_gigabytes(MAX_PIXELS)}") from None
    except UnidentifiedImageError:
        raise ValueError(f"it does not begin as a readable {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file") from None
    tags: Any = getattr(picture, "tag_v2", {})
    # A tile is decoded whole, even if only a part of it lies within the picture.
    for width, height in (picture.size, (tags.get(_TILE_WIDTH, 1), tags.get(_TILE_LENGTH, 1))):
        if width * height > MAX_PIXELS:
            size = f"{width}×{height} pixels, {_gigabytes(width * height)}"
            raise ValueError(f"it has {size}; at most {MAX_PIXELS:,} pixels are read")
    if tags.get(_PLANES) == 2 and max(tags.get(_BITS, (1,))) > 8:
        raise ValueError("its channels of more than 8 bits are stored separately, which Pillow reads as 8 bits")
    return picture


def _layouts(picture: Any) -> str:
    return str([tile[3] for tile in picture.tile])


def _gigabytes(pixels: int) -> str:
    return f"{pixels * 12 / 1e9:.1f} GB as three channels of float32"


def _upright(picture: Image.Image, source: Image.Image) -> Image.Image:
    """``picture`` turned by the EXIF of ``source``.

    It has no EXIF itself, so it is not turned again.
    """
    turn = _turn(source)
    if turn is not None:
        picture = picture.transpose(turn)
    picture.info = {}
    return picture


def _turn(source: Image.Image) -> Image.Transpose | None:
    """The turn that the EXIF of a picture asks for, or None."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    with contextlib.suppress(Exception):  # a picture with broken EXIF is readable
        return turns.get(source.getexif().get(_ORIENTATION, 1))
    return None


def _deep_grey(picture: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Grey of more than 8 bits as (H, W) in [0, 1]; ``convert`` would clip it at 255.

    Raises:
        ValueError: values exceed the file's depth.
    """
    values = np.asarray(picture)
    tags: Any = getattr(picture, "tag_v2", {})
    # Mode "I" without TIFF tags is 16-bit grey, as Pillow 10 returns it.
    bits = max(tags.get(_BITS, (16,)))
    top = 2**bits - 1
    if picture.mode == "F":
        top = 1
    elif max(tags.get(_SAMPLE_FORMAT, (1,))) == 2:
        top //= 2  # signed
    elif bits == 32:
        values = values.view(np.uint32)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= top:
        raise ValueError(f"its values lie in [{low:g}, {high:g}], and only [0, {top}] can be scaled to [0, 1]")
    scaled = np.asarray(np.divide(values, top, dtype=np.float32))
    # Pillow inverts grey whose zero is white only at 8 bits.
    return 1 - scaled if tags.get(_PHOTOMETRIC) == 0 else scaled
