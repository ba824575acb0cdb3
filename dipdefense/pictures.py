"""Pillow's pictures of every mode as RGB or grey, by the rules that ``dipdefense.files`` states.

Pillow is imported where it is used, since ``files`` also serves those who only write a report.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Formats that are read, known by their content and not by their name.

Pillow reads more, but for some it starts other programs: Ghostscript for EPS."""

MAX_PIXELS = 2**26
"""The most pixels of a picture that is read, 8192×8192: 0.8 GB as three channels of float32, 2 GB while it is read."""

# A PNG with a palette has so many greys, and takes pixels for grey whose channels differ by no more than this.
_GREYS, _GREYISH = 64, 4

_ORIENTATION = 0x0112
# Tags of TIFF 6.0.
_BITS, _PHOTOMETRIC, _PLANES, _TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT = 258, 262, 284, 322, 323, 339
_SIDEWAYS = (2, 4, 5, 6)  # Pillow's ROTATE_90, ROTATE_270, TRANSPOSE and TRANSVERSE
_GREY = ("1", "L", "LA", "La")

# Pillow's layouts of 16-bit colour, of which it keeps the higher byte: the last letter says where in a channel it lies.
_DEEP = re.compile(r"(?:RGB|RGBX|RGBA);16[BLN]")
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def decode(content: bytes) -> tuple[Image.Image, list[str]]:
    """The first picture in a file's content, and notes on whatever else there is.

    Raises:
        ValueError: the content is empty, of another format, or has more than ``MAX_PIXELS``.
        Exception: of many kinds, for a file that is broken.
    """
    picture = _opened(content)
    notes = []
    if getattr(picture, "is_animated", False):
        notes.append("it holds several pictures, of which the first is read")
    layouts = _layouts(picture)
    if picture.mode in ("RGB", "RGBA", "CMYK") and ";16" in layouts and not _is_deep(picture):
        notes.append("its channels have 16 bits, of which 8 are read")
    picture.load()
    # Pillow makes colour of 16-bit grey with transparency.
    return picture.convert("LA") if "LA;16" in layouts else picture, notes


def shape(content: bytes) -> tuple[int, int, int]:
    """(channels, height, width) of a file's first picture, upright, without decoding it where its format allows that.

    Raises:
        ValueError, Exception: as of ``decode``.
    """
    picture = _opened(content)
    if picture.format == "TIFF":
        picture.load()  # Pillow turns it upright here, and before that its size and orientation do not fit each other
    grey = picture.mode in (*_GREY, "F") or picture.mode.startswith("I") or "LA;16" in _layouts(picture)
    turned = _turn(picture) in _SIDEWAYS
    width, height = reversed(picture.size) if turned else picture.size
    return 1 if grey else 3, height, width


def colour(picture: Image.Image) -> Image.Image:
    """A picture upright and without transparency: "RGB", or grey as "L", or as "F" in [0, 1] for more than 8 bits.

    Raises:
        ValueError: values lie beyond what the depth allows, or the mode has no conversion.
    """
    from PIL import Image

    if picture.mode == "F" or picture.mode.startswith("I"):
        return _upright(Image.fromarray(_deep_grey(picture)), picture)
    # Pillow warns of losing a palette's transparency unless it is asked for first.
    opaque = picture.convert("RGBA") if picture.mode == "P" and "transparency" in picture.info else picture
    return _upright(opaque.convert("L" if picture.mode in _GREY else "RGB"), picture)


def opacity(picture: Image.Image) -> Image.Image | None:
    """How opaque each pixel is, 255 for wholly, as an upright "L" picture; None for a picture without transparency."""
    from PIL import Image

    transparent = picture.info.get("transparency")
    if picture.mode.startswith("I") and transparent is not None:
        opaque = np.not_equal(np.asarray(picture), transparent)
        return _upright(Image.fromarray(opaque.astype(np.uint8) * 255), picture)
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or transparent is not None:
        return _upright(picture.convert("RGBA").getchannel("A"), picture)
    return None


def layers(picture: Image.Image, content: bytes) -> tuple[Tensor, Tensor | None, Literal[8, 16]]:
    """A file's colour, its opacity if it has any, and the bits of their values.

    Args:
        picture: that ``decode`` made of it.
        content: of the file.

    Returns:
        (1 or 3, H, W) and (1, H, W) float32 in [0, 1], upright.
    """
    if not _is_deep(_opened(content)):
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


def _is_deep(picture: Image.Image) -> bool:
    """Whether a file that was opened and not yet decoded has colour or transparency of 16 bits that can be read."""
    found = _layouts(picture)
    return picture.format in ("PNG", "TIFF") and ("LA;16B" in found or _DEEP.search(found) is not None)


def _sixteen_bits(picture: Any, content: bytes) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """(H, W, C), upright, of a file whose channels Pillow reduces to their higher byte, as it has no mode for them.

    The lower byte is read as the higher one of the other byte order; the four bytes of grey with alpha, as RGBA.
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
    """Pillow's description of how a part of a file is decoded, for the lower bytes."""
    *place, arguments = tile
    layout, *others = [arguments] if isinstance(arguments, str) else arguments
    layout = "RGBA" if grey else layout[:-1] + _OTHER_BYTE[layout[-1]]
    return getattr(type(tile), "_make", tuple)((*place, (layout, *others) if others else layout))


def png_of_16_bits(integers: np.ndarray[Any, np.dtype[np.uint16]], chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A PNG of (H, W, C) integers: grey, grey with alpha, RGB or RGBA; with chunks of metadata after its header."""
    import png

    height, width, channels = integers.shape
    writer = png.Writer(width, height, greyscale=channels < 3, alpha=channels in (2, 4), bitdepth=16)
    plain, complete = io.BytesIO(), io.BytesIO()
    writer.write_packed(plain, (row.tobytes() for row in integers.astype(">u2")))
    head, *rest = png.Reader(bytes=plain.getvalue()).chunks()
    png.write_chunks(complete, [head, *chunks, *rest])
    return complete.getvalue()


def to_tensor(picture: Image.Image) -> Tensor:
    """(C, H, W) float32 in [0, 1] of a picture in RGB or 8-bit grey, or of floats in [0, 1]."""
    pixels = torch.from_numpy(np.array(picture))
    pixels = (pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]).contiguous()
    return pixels if pixels.is_floating_point() else pixels / 255


def quantised(values: np.ndarray[Any, np.dtype[np.float32]], *, bits: int) -> np.ndarray[Any, Any]:
    """Values in [0, 1] as integers of 8 or 16 bits."""
    return np.asarray(np.rint(values.clip(0, 1) * (2**bits - 1)), dtype=np.uint8 if bits == 8 else np.uint16)


def with_palette(png: bytes) -> bytes:
    """A PNG in 256 colours: a picture of a page, which looks the same at a third to a half of the size.

    64 of the colours are greys, so that grey parts have no tinge; the others are the picture's own.
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
    """The first picture in a file's content, of which no pixel was decoded, within the limits."""
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise ValueError("it is empty")
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:  # Pillow has a limit of its own, which any program may set
        raise ValueError(f"it has more than {MAX_PIXELS:,} pixels, {_gigabytes(MAX_PIXELS)}") from None
    except UnidentifiedImageError:
        raise ValueError(
            f"it does not begin as a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} that can be read"
        ) from None
    tags: Any = getattr(picture, "tag_v2", {})
    # A tile is decoded whole, however little of it lies within the picture.
    for width, height in (picture.size, (tags.get(_TILE_WIDTH, 1), tags.get(_TILE_LENGTH, 1))):
        if width * height > MAX_PIXELS:
            size = f"{width}×{height} pixels, {_gigabytes(width * height)}"
            raise ValueError(f"it has {size}; at most {MAX_PIXELS:,} pixels are read")
    if tags.get(_PLANES) == 2 and max(tags.get(_BITS, (1,))) > 8:
        raise ValueError("its channels of more than 8 bits lie one after the other, which Pillow takes for 8 bits")
    return picture


def _layouts(picture: Any) -> str:
    return str([tile[3] for tile in picture.tile])


def _gigabytes(pixels: int) -> str:
    return f"{pixels * 12 / 1e9:.1f} GB as three channels of float32"


def _upright(picture: Image.Image, source: Image.Image) -> Image.Image:
    """``picture`` turned as the EXIF of ``source`` says, and without any of its own, lest it is turned again."""
    turn = _turn(source)
    if turn is not None:
        picture = picture.transpose(turn)
    picture.info = {}
    return picture


def _turn(source: Image.Image) -> Image.Transpose | None:
    """How its EXIF says that a picture is to be turned."""
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
    with contextlib.suppress(Exception):  # broken EXIF makes no picture unreadable
        return turns.get(source.getexif().get(_ORIENTATION, 1))
    return None


def _deep_grey(picture: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(H, W) in [0, 1] of grey of more than 8 bits, which ``convert`` would cut off at 255."""
    values = np.asarray(picture)
    tags: Any = getattr(picture, "tag_v2", {})
    # An "I" that is no TIFF is grey of 16 bits, as Pillow 10 gives it.
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
    # Pillow inverts grey whose zero is white for 8 bits alone.
    return 1 - scaled if tags.get(_PHOTOMETRIC) == 0 else scaled
