"""Mutated and hostile files: each is an image or ``UnreadableImage``, in bounds."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import io
import os
import resource
import struct
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dipdefense import files, pictures
from dipdefense.classifiers import CIFAR10_CATEGORIES, Preprocess
from dipdefense.datasets import ImageFiles, cifar10
from dipdefense.files import UnreadableImage, read_image

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")]

SECONDS, MEGABYTES = 10, 700
"""The most that one file may take. A picture at the pixel limit of these tests takes some 100 MB in all its copies."""


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 2**22)
    monkeypatch.setattr(files, "MAX_BYTES", 2**24)


def encoded(picture: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    # Copies, because a JPEG's settings stay with the pictures and spoil a TIFF.
    further = (
        {"append_images": [page.copy() for page in options["append_images"]]} if "append_images" in options else {}
    )
    picture.copy().save(buffer, form, **{**options, **further})
    return buffer.getvalue()


@functools.cache
def samples() -> dict[str, bytes]:
    """One file of each format and mode, and a photograph."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 4), dtype=np.uint8)).resize((96, 80))
    rgb, exif = noise.convert("RGB"), Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    several = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    found = {
        "rgb.png": encoded(rgb, "PNG", exif=exif, icc_profile=bytes(range(256))),
        "rgba.png": encoded(noise, "PNG"),
        "deep.png": encoded(deep, "PNG", transparency=257),
        "palette.png": encoded(rgb.quantize(64), "PNG", transparency=b"\x80\0\xff"),
        "animated.png": encoded(rgb, "PNG", **several),
        "grey.jpg": encoded(rgb.convert("L"), "JPEG", exif=exif),
        "progressive.jpg": encoded(rgb, "JPEG", progressive=True, exif=exif, icc_profile=bytes(3000)),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "several.jpg": encoded(rgb, "MPO", **several),
        "rgb.bmp": encoded(rgb, "BMP"),
        "palette.bmp": encoded(rgb.quantize(16), "BMP"),
        "animated.gif": encoded(rgb, "GIF", **several),
        "lossy.webp": encoded(rgb, "WEBP", exif=exif),
        "lossless.webp": encoded(noise, "WEBP", lossless=True),
        "animated.webp": encoded(rgb, "WEBP", **several),
        "deep.tif": encoded(deep, "TIFF", exif=exif),
        "lzw.tif": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encoded(rgb, "TIFF", compression="jpeg"),
        "pages.tif": encoded(rgb, "TIFF", compression="tiff_deflate", **several),
        "floats.tif": encoded(Image.fromarray(np.asarray(rgb.convert("L")) / np.float32(255)), "TIFF"),
    }
    foolbox = importlib.util.find_spec("foolbox")
    if foolbox is not None and foolbox.origin is not None:
        data = Path(foolbox.origin).parent / "data"
        found["photograph.jpg"] = min(data.glob("imagenet_*.jpg")).read_bytes()
        found["photograph.png"] = min(data.glob("cifar10_*.png")).read_bytes()
    return found


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """The file with one thing wrong, mostly near its beginning, where numbers are."""
    spoiled = bytearray(content)
    place = int(len(content) * random.random() ** random.choice([1, 5]))
    extreme = random.choice(
        [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, int(random.integers(2**32))]
    )
    match int(random.integers(7)):
        case 0:
            spoiled[place] ^= 1 << int(random.integers(8))
        case 1:
            for _ in range(20):
                spoiled[int(len(content) * random.random())] = int(random.integers(256))
        case 2:
            spoiled[place : place + 4] = struct.pack(str(random.choice(["<I", ">I"])), int(extreme))
        case 3:
            spoiled[place : place + 2] = struct.pack(str(random.choice(["<H", ">H"])), int(extreme) & 0xFFFF)
        case 4:
            del spoiled[place:]
        case 5:
            del spoiled[place : place + int(random.integers(1, 64))]
        case 6:
            spoiled[place:place] = spoiled[place : place + int(random.integers(1, 4096))] * int(random.integers(1, 20))
    return bytes(spoiled)


def in_bounds(read: Callable[[], object]) -> object:
    """What was read, or None for an unreadable image.

    Any other error, and too much time or memory, fails the test.
    """
    # A high-water mark, so that it grows once for what many files take.
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    try:
        found = read()
    except UnreadableImage as error:
        str(error).encode()
        found = None
    assert time.monotonic() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", samples())
def test_mutations_are_images_or_unreadable(name: str, tmp_path: Path) -> None:
    content = samples()[name]
    random = np.random.default_rng(list(name.encode()))
    data = ImageFiles(tmp_path, {name: 0}, categories=("any",), preprocess=Preprocess(resize=36, crop=32))
    assert read_image(content).rgb.ndim == 3
    read = 0
    for number in range(150):
        spoiled = mutated(content, random)
        image = in_bounds(lambda spoiled=spoiled: read_image(spoiled, name=name))
        if image is not None:
            read += 1
            assert image.pixels.shape[1:].numel() <= 2**22
            assert 0 <= image.pixels.min() <= image.pixels.max() <= 1
        if number % 3 == 0:
            (tmp_path / name).write_bytes(spoiled)
            item = in_bounds(lambda: data[0])
            assert item is None or item.image.shape == (3, 32, 32)
    assert read < 150


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes, data: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@functools.cache
def contents() -> dict[str, bytes]:
    """Hostile contents by name."""
    bomb = zlib.compress(bytes(2**26), 9)
    found = {
        "empty": b"",
        "newline": b"\n",
        "text": b"no image\n" * 1000,
        "page": b"<!doctype html><html><body>404</body></html>",
        "vector": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\nwhile true {} loop\n",
        "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        "pickle": b"cos\nsystem\n(S'false'\ntR.",
        "zeros": bytes(100_000),
        "ones": b"\xff" * 100_000,
        "noise": np.random.default_rng(0).bytes(100_000),
        "gzip": gzip.compress(bytes(10_000)),
        "other format": encoded(Image.new("L", (32, 32)), "PPM"),
        "icon": encoded(Image.new("L", (32, 32)), "ICO"),
        "pixels of a bomb": png(2**15, 2**15, data=bomb),
        "text of a bomb": png(9, 9, *[chunk(b"zTXt", b"Comment\0\0" + bomb)] * 9),
        "profile of a bomb": png(9, 9, chunk(b"iCCP", b"x\0\0" + bomb)),
        "no width": png(0, 9),
        "widest": png(2**31 - 1, 2**31 - 1),
        "many frames": png(9, 9, chunk(b"acTL", struct.pack(">II", 2**31, 0))),
        "longer than allowed": bytes(2**24 + 1),
        "one pixel": encoded(Image.new("L", (1, 1)), "PNG"),
        "narrow": encoded(Image.new("L", (1, 4000)), "PNG"),
        "wide": encoded(Image.new("L", (4000, 1)), "PNG"),
        "floats": encoded(Image.new("F", (32, 32), -1), "TIFF"),
        "pages in a ring": encoded(Image.new("L", (1, 9)), "TIFF")[:-4] + struct.pack("<I", 8),
    }
    for name, content in samples().items():
        stem = name.replace(".", " ")
        found |= {f"{stem} cut at {part} of 9": content[: len(content) * part // 9] for part in (1, 2, 4)}
        found[f"{stem} beginning alone"] = content[:16] + bytes(200)
        found[f"{stem} behind a byte"] = b"\0" + content
        found[f"{stem} reversed"] = content[::-1]
        found[f"{stem} read as text"] = content.decode("utf-8", "replace").encode()
    return found


def special(folder: Path) -> None:
    """Files that are no regular ones, or have no common name."""
    for suffix in files.SUFFIXES:
        os.mkfifo(folder / f"pipe{suffix}")
        (folder / f"dangling{suffix}").symlink_to(folder / "nothing")
        (folder / f"zero{suffix}").symlink_to("/dev/zero")
        (folder / f"random{suffix}").symlink_to("/dev/urandom")
        (folder / f"terminal{suffix}").symlink_to("/dev/tty")
        (folder / f"ring{suffix}").symlink_to(folder / f"ring{suffix}")
        (folder / f"kernel{suffix}").symlink_to("/proc/self/maps")
        (folder / os.fsdecode(b"\xff\xfe" + suffix.encode())).write_bytes(b"")
    with (folder / "sparse.png").open("wb") as sparse:
        sparse.truncate(2**40)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("preprocess", [None, Preprocess(resize=36, crop=32)], ids=["as it is", "preprocessed"])
def test_hostile_files_are_named_and_good_ones_read(tmp_path: Path, preprocess) -> None:
    folder = tmp_path / "test" / "cat"
    folder.mkdir(parents=True)
    for name, content in contents().items():
        (folder / f"{name}.png").write_bytes(content)
    special(folder)
    hostile = len(list(folder.iterdir()))
    assert hostile >= 200
    for name, content in samples().items():
        (folder / f"good {name}").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = cifar10(tmp_path, preprocess=preprocess)
    assert len(data) == hostile + len(samples())
    read = {data.ids[index]: item for index in range(len(data)) if (item := in_bounds(lambda i=index: data[i]))}
    good = {f"test/cat/good {name}" for name in samples()}
    assert good <= set(read)
    # Some that are cut still hold their first frame whole, and tiny ones are images until they are to be enlarged.
    assert len(read) < len(good) + 20
    assert all(item.label == CIFAR10_CATEGORIES.index("cat") for item in read.values())


@pytest.mark.timeout(300)
def test_hostile_entries_of_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents().items():
            archive.writestr(f"test/dog/{name}.png", content)
        archive.writestr("test/dog/bomb.png", bytes(2**26))
        archive.writestr("test/dog/../../escape.png", b"")
        for size in (0, 1, 2**20, 2**40):
            archive.writestr(f"test/dog/declared {size}.png", contents()["zeros"])
            archive.filelist[-1].file_size = size
    names = dict.fromkeys((info.filename for info in archive.filelist), 5)
    data = ImageFiles(tmp_path / "a.zip", names, categories=CIFAR10_CATEGORIES, preprocess=Preprocess(36, 32))
    read = [data.ids[index] for index in range(len(data)) if in_bounds(lambda i=index: data[i]) is not None]
    assert len(read) < 20
