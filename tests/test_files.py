"""Files are written all or not at all, and images are read within limits."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from dipdefense import files
from dipdefense.files import (
    ImageFile,
    UnreadableImage,
    atomic,
    read_image,
    remove_unfinished,
    shape_of,
    write_atomically,
    write_image,
)


def test_a_file_is_written_as_bytes_or_as_utf8(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"\x00\xff")
    write_atomically(str(tmp_path / "b"), "ε\n")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_bytes() == b"\xce\xb5\n"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("step", ["the block", "fsync", "replace"])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch, error, step: str) -> None:
    def fail(*args, **kwargs):
        raise error()

    path = tmp_path / "report.md"
    path.write_text("old")
    if step == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    if step == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(error) as raised, atomic(path) as file:  # noqa: PT012
        file.write(b"new")
        if step == "the block":
            fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    if error is OSError:
        assert raised.value.filename == str(path)


def test_the_old_file_is_whole_until_the_new_one_is(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    path.write_text("old")
    with atomic(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from dipdefense.files import atomic\n"
        "with atomic(sys.argv[1]) as file: file.write(b'half'); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    (left,) = tmp_path.iterdir()
    for name in (".mine.tmp", "b.tmp", f".{'0' * 15}g.tmp"):
        (tmp_path / name).write_text("")
    assert remove_unfinished(tmp_path, older_than=3600) == 0
    assert remove_unfinished(tmp_path) == 1
    assert not left.exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_permissions_are_the_old_files_or_the_usual_ones(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    (tmp_path / "private").write_text("")
    (tmp_path / "private").chmod(0o600)
    for name in ("fresh", "private"):
        write_atomically(tmp_path / name, "new")
    assert (tmp_path / "fresh").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    for text in ("first", "second"):
        write_atomically(tmp_path / "link", text)
        assert (tmp_path / "folder" / "file").read_text() == text
    assert (tmp_path / "link").is_symlink()


def test_a_name_as_long_as_can_be(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("a" * 255), "x")
    assert (tmp_path / ("a" * 255)).read_text() == "x"


@pytest.mark.parametrize("place", ["missing/a", "file/a", "folder", "fifo"])
def test_places_where_no_file_can_be_written_are_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=str(tmp_path / place)):
        write_atomically(tmp_path / place, "x")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unreadable_image_says_which_and_why() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("val/a.png", "it is empty", id="a.png")))
    assert str(error) == "val/a.png cannot be read as an image: it is empty"
    assert (error.path, error.reason, error.id) == ("val/a.png", "it is empty", "a.png")
    # A DataLoader's worker raises it again so, from the message alone.
    assert str(UnreadableImage(str(error))) == str(error)


def test_reports_are_written_without_pillow() -> None:
    code = "import sys, dipdefense.files; print([name for name in sys.modules if name.split('.')[0] == 'PIL'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def grey(bits: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 2**bits, (40, 50))
    return Image.fromarray(pixels.astype(np.uint8 if bits == 8 else np.uint16))


def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


SOURCES = {
    "grey": (grey(8), {}),
    "16-bit grey": (grey(16), {}),
    "grey with alpha": (Image.merge("LA", (grey(8), grey(8).rotate(180))), {}),
    "RGB": (Image.merge("RGB", (grey(8), grey(8).rotate(180), grey(8))), {"icc_profile": profile()}),
    "RGBA": (Image.merge("RGBA", [grey(8).rotate(180 * turn) for turn in range(4)]), {"icc_profile": profile()}),
    "a transparent colour": (grey(8), {"transparency": 7}),
}


@pytest.mark.parametrize("orientation", [1, 6, 7])
@pytest.mark.parametrize(("picture", "options"), SOURCES.values(), ids=SOURCES)
def test_an_image_is_written_as_it_was_read(tmp_path: Path, picture: Image.Image, options, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "source.png", exif=exif, **options)
    source = read_image(tmp_path / "source.png")
    assert shape_of((tmp_path / "source.png").read_bytes(), name="source") == source.pixels.shape
    write_image(
        tmp_path / "a.png", source.pixels, alpha=source.alpha, bits=source.bits, icc=source.icc, text={"k": "v"}
    )
    written = read_image(tmp_path / "a.png")
    assert torch.equal(written.pixels, source.pixels)
    assert source.pixels.shape[1:] == ((50, 40) if orientation > 4 else (40, 50))
    assert (written.bits, written.icc, written.notes) == (source.bits, source.icc, ())
    assert source.icc == options.get("icc_profile")
    assert (source.alpha is None) == (picture.mode in ("L", "I;16", "RGB") and "transparency" not in options)
    if source.alpha is not None:
        assert torch.equal(written.alpha, source.alpha)
    with Image.open(tmp_path / "a.png") as again:
        assert 0x0112 not in again.getexif()
        assert again.text == {"k": "v"}


@pytest.mark.parametrize("transparent", [False, True], ids=["opaque", "transparent"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_written_as_they_were_read(tmp_path: Path, channels: int, transparent: bool) -> None:
    values = torch.from_numpy(np.random.default_rng(0).integers(0, 2**16, (4, 20, 30)).astype(np.float32)) / 65535
    pixels, alpha = values[:channels], values[3:] if transparent else None
    icc = profile() if channels == 3 else None
    write_image(tmp_path / "a.png", pixels, alpha=alpha, bits=16, icc=icc, text={"k": "ε", "l": "x"})
    written = read_image(tmp_path / "a.png")
    assert torch.equal(written.pixels, pixels)
    assert (written.bits, written.icc, written.notes) == (16, icc, ())
    assert torch.equal(written.alpha, alpha) if transparent else written.alpha is None
    with Image.open(tmp_path / "a.png") as again:
        again.load()
        assert again.text == {"k": "ε", "l": "x"}


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_shape_in_the_header_is_the_upright_pictures(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    grey(8).convert("RGB").save(path, exif=exif)
    assert shape_of(path.read_bytes(), name="a") == read_image(path).pixels.shape


def test_rounding_goes_to_the_nearest_and_not_beyond_the_range(tmp_path: Path) -> None:
    pixels = torch.tensor([[[-1e-6, 0.4999 / 255, 0.5001 / 255, 1 + 1e-6]]], dtype=torch.float64)
    write_image(tmp_path / "a.png", pixels)
    assert (read_image(tmp_path / "a.png").pixels * 255).tolist() == [[[0, 0, 1, 255]]]


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("a.jpg", {}, ValueError, r"ends in \.png, not '.*a\.jpg'"),
        ("a.png", {"bits": 12}, ValueError, "bits must be 8 or 16, got 12"),
        ("a.png", {"pixels": np.zeros((3, 4, 4))}, TypeError, "pixels must be a tensor of floats"),
        ("a.png", {"pixels": torch.zeros(3, 4, 4, dtype=torch.uint8)}, TypeError, r"got torch\.uint8"),
        (
            "a.png",
            {"pixels": torch.zeros(4, 4)},
            ValueError,
            r"\(1, height, width\) or \(3, height, width\), got \(4, 4\)",
        ),
        ("a.png", {"pixels": torch.zeros(3, 0, 4)}, ValueError, "must have the shape"),
        ("a.png", {"pixels": torch.full((3, 4, 4), 2.0)}, ValueError, r"in \[0, 1\], got values in \[2, 2\]"),
        ("a.png", {"pixels": torch.full((3, 4, 4), torch.nan)}, ValueError, r"in \[0, 1\], got values in \[nan, nan\]"),
        ("a.png", {"alpha": torch.zeros(3, 4, 4)}, ValueError, r"alpha must have the shape \(1, height, width\)"),
        ("a.png", {"alpha": torch.zeros(1, 4, 5)}, ValueError, "must have one size"),
        ("missing/a.png", {}, FileNotFoundError, r"missing/a\.png"),
    ],
)
def test_nothing_else_is_written(tmp_path: Path, name: str, arguments, error, message: str) -> None:
    with pytest.raises(error, match=message):
        write_image(tmp_path / name, **{"pixels": torch.zeros(3, 4, 4), **arguments})
    assert list(tmp_path.iterdir()) == []


def test_bytes_are_read_like_their_file(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", torch.rand(3, 4, 5))
    by_path, by_content = read_image(str(tmp_path / "a.png")), read_image((tmp_path / "a.png").read_bytes(), name="b")
    assert torch.equal(by_path.pixels, by_content.pixels)
    assert (by_path.name, by_content.name) == (str(tmp_path / "a.png"), "b")
    assert ImageFile("a", torch.zeros(1, 4, 5)).rgb.shape == (3, 4, 5)
    with pytest.raises(UnreadableImage, match=r"^<3 bytes> cannot be read"):
        read_image(b"abc")


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 300 + ".png", "", "a.png/b.png", os.fsdecode(b"\xff.png")])
def test_impossible_names_are_unreadable_images(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UnreadableImage) as raised:
        read_image(name)
    str(raised.value).encode()


def test_no_more_is_read_than_the_limit(tmp_path: Path, monkeypatch) -> None:
    write_image(tmp_path / "a.png", torch.rand(3, 40, 50))
    length = (tmp_path / "a.png").stat().st_size
    monkeypatch.setattr(files, "MAX_BYTES", length)
    read_image(tmp_path / "a.png")
    monkeypatch.setattr(files, "MAX_BYTES", length - 1)
    with pytest.raises(UnreadableImage, match="longer than"):
        read_image(tmp_path / "a.png")
    # The size of a file of the kernel is 0, whatever it holds.
    monkeypatch.setattr(files, "MAX_BYTES", 3)
    with pytest.raises(UnreadableImage, match="longer than"):
        read_image("/proc/self/status")


@pytest.mark.timeout(20)
def test_a_file_that_becomes_a_pipe_after_the_check_is_not_waited_for(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.png")
    status = os.stat(tmp_path / "file")  # noqa: PTH116
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", lambda path: status)
        with pytest.raises(UnreadableImage, match="it is empty"):
            read_image(str(tmp_path / "pipe.png"))


def lying(archive: zipfile.ZipFile, **attributes: int) -> None:
    for name, value in attributes.items():
        setattr(archive.filelist[-1], name, value)


@pytest.mark.parametrize(
    ("method", "attributes", "message"),
    [
        (zipfile.ZIP_DEFLATED, {}, None),
        (zipfile.ZIP_STORED, {}, None),
        (zipfile.ZIP_DEFLATED, {"file_size": 10 * 2**30}, "longer than"),
        (zipfile.ZIP_DEFLATED, {"file_size": 100}, "CRC-32"),
        (zipfile.ZIP_STORED, {"header_offset": 10**6}, "[Tt]runcated|overlap|BadZipFile"),
        (zipfile.ZIP_DEFLATED, {"flag_bits": 1}, "encrypted"),
        (zipfile.ZIP_BZIP2, {}, "only deflate is read"),
        (zipfile.ZIP_LZMA, {}, "only deflate is read"),
    ],
    ids=["deflated", "stored", "declared long", "declared short", "beyond the end", "encrypted", "bzip2", "lzma"],
)
def test_entries_of_archives(tmp_path: Path, method: int, attributes, message: str | None) -> None:
    content = bytes(range(256)) * 8
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("b.png", content)
        lying(archive, **attributes)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        if message is None:
            assert files.read_entry(archive, "b.png") == content
            message, name = "no item named", "missing.png"
        else:
            name = "b.png"
        with pytest.raises(UnreadableImage, match=rf"a\.zip/{name} cannot be read as an image: .*({message})"):
            files.read_entry(archive, name)


def test_pixels_are_float32_whatever_the_default_dtype(tmp_path: Path) -> None:
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(tmp_path / "a.png")
    torch.set_default_dtype(torch.float64)
    try:
        pixels = files.read_image(tmp_path / "a.png").pixels
    finally:
        torch.set_default_dtype(torch.float32)
    assert pixels.dtype == torch.float32
