"""Pictures of every mode, depth and format become the right tensor, upright."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from torch import Tensor

from dipdefense import pictures
from dipdefense.classifiers import MAX_ASPECT, MIN_SIDE, Preprocess
from dipdefense.files import SUFFIXES, UnreadableImage, open_rgb, read_image, shape_of, to_rgb

RAMP = np.linspace(0, 255, 32 * 40).reshape(32, 40).astype(np.uint8)
DEEP = np.linspace(0, 65535, 32 * 40).reshape(32, 40).astype(np.uint16)
COLOUR = np.stack([RAMP, RAMP.T.reshape(32, 40), 255 - RAMP], axis=2)


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, *, bits: int, order: str = "<", **more: int) -> bytes:
    """An uncompressed one-strip greyscale TIFF; Pillow itself writes few kinds."""
    data = values.tobytes()
    numbers = {"photometric": 1, "sample_format": 1, "width": values.shape[1], "height": values.shape[0], **more}
    tags = {256: numbers["width"], 257: numbers["height"], 258: bits, 259: 1, 262: numbers["photometric"], 273: 8}
    tags |= {277: 1, 278: numbers["height"], 279: len(data), 339: numbers["sample_format"]}
    if "tile" in more:
        tags |= {322: more["tile"], 323: more["tile"], 324: 8, 325: len(data)}
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data)) + data
    content += struct.pack(f"{order}H", len(tags))
    for tag, value in sorted(tags.items()):
        content += struct.pack(f"{order}HHII", tag, 4, 1, value)
    return content + struct.pack(f"{order}I", 0)


EXACT = {
    "BMP grey": (encoded(Image.fromarray(RAMP), "BMP"), RAMP / 255),
    "GIF grey": (encoded(Image.fromarray(RAMP), "GIF"), RAMP / 255),
    "PNG grey": (encoded(Image.fromarray(RAMP)), RAMP / 255),
    "TIFF grey": (encoded(Image.fromarray(RAMP), "TIFF"), RAMP / 255),
    "PNG black and white": (encoded(Image.fromarray(RAMP > 99)), RAMP > 99),
    "PNG grey and alpha": (encoded(Image.fromarray(np.stack([RAMP, 255 - RAMP], axis=2))), RAMP / 255),
    "BMP RGB": (encoded(Image.fromarray(COLOUR), "BMP"), COLOUR / 255),
    "PNG RGB": (encoded(Image.fromarray(COLOUR)), COLOUR / 255),
    "PNG RGBA": (encoded(Image.fromarray(np.concatenate([COLOUR, RAMP[:, :, None]], axis=2))), COLOUR / 255),
    "TIFF RGB": (encoded(Image.fromarray(COLOUR), "TIFF", compression="tiff_lzw"), COLOUR / 255),
    "WebP RGB": (encoded(Image.fromarray(COLOUR), "WEBP", lossless=True), COLOUR / 255),
    "GIF palette": (encoded(Image.fromarray(COLOUR & 192).quantize(64), "GIF"), (COLOUR & 192) / 255),
    "PNG palette": (encoded(Image.fromarray(COLOUR & 192).quantize(64)), (COLOUR & 192) / 255),
    "TIFF CMYK": (encoded(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"), COLOUR / 255),
}
DEEPER = {
    "PNG 16 bits": (encoded(Image.fromarray(DEEP)), DEEP / 65535),
    "TIFF 16 bits": (encoded(Image.fromarray(DEEP), "TIFF"), DEEP / 65535),
    "TIFF 16 bits, compressed": (encoded(Image.fromarray(DEEP), "TIFF", compression="tiff_deflate"), DEEP / 65535),
    "TIFF 16 bits, big-endian": (tiff(DEEP.astype(">u2"), bits=16, order=">"), DEEP / 65535),
    "TIFF 16 bits, zero is white": (tiff(DEEP, bits=16, photometric=0), 1 - DEEP / 65535),
    "TIFF 16 bits, signed": (tiff((DEEP // 2).astype(np.int16), bits=16, sample_format=2), DEEP // 2 / 32767),
    "TIFF 12 bits": (
        tiff(np.array([[0x00, 0x0F, 0xFF], [0x80, 0x00, 0x01]], np.uint8), bits=12, width=2),
        np.array([[0, 4095], [2048, 1]]) / 4095,
    ),
    "TIFF 32 bits": (tiff(DEEP.astype(np.uint32) << 16, bits=32), DEEP / 65535.99998),
    "TIFF floats": (tiff((DEEP / 65535).astype(np.float32), bits=32, sample_format=3), DEEP / 65535),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [*EXACT, *DEEPER])
def test_values_are_the_files(name: str) -> None:
    content, expected = (EXACT | DEEPER)[name]
    image = read_image(content)
    expected = torch.tensor(expected, dtype=torch.float32)
    expected = expected.permute(2, 0, 1) if expected.ndim == 3 else expected[None]
    torch.testing.assert_close(image.pixels, expected, rtol=0, atol=1e-6)
    assert image.bits == (16 if name in DEEPER else 8)
    # A classifier's preprocessing sees the same in 8 bits.
    rgb = torch.from_numpy(np.array(to_rgb(pictures.decode(content)[0]))).permute(2, 0, 1) / 255
    torch.testing.assert_close(rgb, image.rgb, rtol=0, atol=0.5001 / 255)
    if image.bits == 8:
        assert torch.equal(rgb, image.rgb)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_are_read_as_pillow_decodes_them(mode: str) -> None:
    content = encoded(Image.fromarray(COLOUR).convert(mode), "JPEG", quality=95)
    image = read_image(content)
    assert len(image.pixels) == (1 if mode == "L" else 3)
    expected = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
    assert torch.equal(image.rgb, torch.from_numpy(expected).permute(2, 0, 1) / 255)
    assert image.notes == (("CMYK is read as RGB without colour management",) if mode == "CMYK" else ())


ALPHA = np.where(np.arange(40) < 20, 0, 255).astype(np.uint8) * np.ones((32, 1), np.uint8)
FLAT = Image.fromarray(255 - ALPHA)  # 255 where it is transparent
TRANSPARENT = {
    "grey and alpha": encoded(Image.merge("LA", (FLAT, Image.fromarray(ALPHA)))),
    "RGBA": encoded(Image.merge("RGBA", (FLAT, FLAT, FLAT, Image.fromarray(ALPHA)))),
    "WebP": encoded(Image.merge("RGBA", (FLAT, FLAT, FLAT, Image.fromarray(ALPHA))), "WEBP", lossless=True, exact=True),
    "a grey": encoded(FLAT, transparency=255),
    "a 16-bit grey": encoded(Image.fromarray(np.asarray(FLAT).astype(np.uint16) * 257), transparency=65535),
    "a colour": encoded(FLAT.convert("RGB"), transparency=(255, 255, 255)),
    "an entry of a palette": encoded(FLAT.quantize(2), transparency=int(np.asarray(FLAT.quantize(2))[0, 0])),
    "entries of a palette": encoded(
        FLAT.quantize(2), transparency=b"\0\xff" if np.asarray(FLAT.quantize(2))[0, 0] == 0 else b"\xff\0"
    ),
    "GIF": encoded(FLAT.quantize(2), "GIF", transparency=int(np.asarray(FLAT.quantize(2))[0, 0])),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("content", TRANSPARENT.values(), ids=TRANSPARENT)
def test_transparency_is_set_aside_and_the_colours_under_it_count(content: bytes) -> None:
    image = read_image(content)
    assert image.alpha is not None
    torch.testing.assert_close(image.alpha, torch.from_numpy(ALPHA)[None] / 255)
    torch.testing.assert_close(image.rgb, (1 - image.alpha).expand(3, -1, -1))
    assert to_rgb(Image.open(io.BytesIO(content))).getextrema() == ((0, 255),) * 3


@pytest.mark.filterwarnings("error")
def test_a_palette_may_be_half_transparent() -> None:
    image = read_image(encoded(FLAT.quantize(2), transparency=b"\x80\x80"))
    assert image.alpha is not None
    assert image.alpha.unique().tolist() == pytest.approx([128 / 255])
    assert torch.equal(image.rgb, read_image(encoded(FLAT)).rgb)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright_once(orientation: int, form: str) -> None:
    # As the standard defines them: where the first row and the first column of the file lie.
    turned = {
        1: RAMP, 2: RAMP[:, ::-1], 3: RAMP[::-1, ::-1], 4: RAMP[::-1], 5: RAMP.T, 6: np.rot90(RAMP, -1),
        7: RAMP[::-1, ::-1].T, 8: np.rot90(RAMP),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(form, {})
    content = encoded(Image.fromarray(RAMP), form, exif=exif, **options)
    expected = torch.from_numpy(turned[orientation].copy()) / 255
    torch.testing.assert_close(read_image(content).pixels[0], expected, rtol=0, atol=3 / 255)
    rgb = to_rgb(Image.open(io.BytesIO(content)))
    for picture in (rgb, to_rgb(rgb)):
        torch.testing.assert_close(torch.from_numpy(np.array(picture))[:, :, 0] / 255, expected, rtol=0, atol=3 / 255)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_broken_exif_makes_no_picture_unreadable() -> None:
    for exif in (b"Exif\0\0MM\0*\0\0", b"Exif\0\0" + bytes(40), b"Exif\0\0II*\0\x08\0\0\0\xff\xff"):
        image = read_image(encoded(Image.fromarray(RAMP), exif=exif))
        assert torch.equal(image.pixels[0], torch.from_numpy(RAMP) / 255)


def frames(form: str) -> bytes:
    pages = [Image.new("RGB", (32, 32), (level, 0, 0)) for level in (255, 0)]
    return encoded(pages[0], form, save_all=True, append_images=pages[1:])


@pytest.mark.parametrize("form", ["GIF", "PNG", "TIFF", "WEBP", "MPO"])
def test_the_first_of_several_pictures_is_read_and_said_to_be(form: str) -> None:
    image = read_image(frames(form))
    assert image.notes == ("it holds several pictures, of which the first is read",)
    assert image.pixels[0].min() > 0.98
    assert image.pixels[1:].max() < 0.02


DEEP_RGBA = np.random.default_rng(1).integers(0, 2**16, (32, 40, 4), dtype=np.uint16)
RGBA = torch.from_numpy(DEEP_RGBA.astype(np.float32)).permute(2, 0, 1) / 65535


def deep_tiff(pixels: np.ndarray, photometric: str = "rgb", **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric=photometric, **options)
    return file.getvalue()


def deep_png(pixels: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    return pictures.png_of_16_bits(pixels, chunks)


TRANSPARENT_COLOUR = struct.pack(">HHH", *DEEP_RGBA[3, 7, :3])
DEEP_COLOUR = {
    "PNG RGB": (deep_png(DEEP_RGBA[..., :3]), RGBA[:3], None),
    "PNG RGBA": (deep_png(DEEP_RGBA), RGBA[:3], RGBA[3:]),
    "PNG grey with alpha": (deep_png(DEEP_RGBA[..., 2:]), RGBA[2:3], RGBA[3:]),
    "PNG with a transparent colour": (
        deep_png(DEEP_RGBA[..., :3], (b"tRNS", TRANSPARENT_COLOUR)),
        RGBA[:3],
        (RGBA[:3] != RGBA[:3, 3:4, 7:8]).any(dim=0, keepdim=True).float(),
    ),
}
for order in "<>":
    for kind, options in {
        "": {},
        ", deflate": {"compression": "zlib"},
        ", tiles": {"tile": (16, 16)},
        ", a channel more": {"extrasamples": ["unspecified"]},
    }.items():
        pixels = DEEP_RGBA if "extrasamples" in options else DEEP_RGBA[..., :3]
        content = deep_tiff(pixels, byteorder=order, **options)
        DEEP_COLOUR[f"TIFF RGB{kind}, {order}"] = (content, RGBA[:3], None)
    content = deep_tiff(DEEP_RGBA, byteorder=order, extrasamples=["unassalpha"])
    DEEP_COLOUR[f"TIFF RGBA, {order}"] = (content, RGBA[:3], RGBA[3:])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("content", "colour", "alpha"), DEEP_COLOUR.values(), ids=DEEP_COLOUR)
def test_16_bits_of_colour_are_kept(content: bytes, colour: Tensor, alpha: Tensor | None) -> None:
    image = read_image(content)
    torch.testing.assert_close(image.pixels, colour, rtol=0, atol=1e-7)
    if alpha is None:
        assert image.alpha is None
    else:
        torch.testing.assert_close(image.alpha, alpha, rtol=0, atol=1e-7)
    assert (image.bits, image.notes) == (16, ())
    assert shape_of(content, name="a") == colour.shape
    # A classifier's preprocessing has the higher byte.
    rgb = torch.from_numpy(np.array(open_rgb(content, name="a"))).permute(2, 0, 1)
    assert torch.equal(rgb, ((image.rgb * 65535).round() / 256).floor().byte())


def test_16_bits_turned_by_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = deep_png(DEEP_RGBA[..., :3], (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    image = read_image(content)
    torch.testing.assert_close(image.pixels, RGBA[:3].rot90(-1, (1, 2)), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"photometric": "separated"}, "CMYK is read as RGB without colour management"),
        ({"extrasamples": ["assocalpha"]}, None),
    ],
    ids=["CMYK", "premultiplied"],
)
def test_16_bits_that_are_reduced_are_said_to_be(options: dict[str, Any], note: str | None) -> None:
    image = read_image(deep_tiff(DEEP_RGBA, **options))
    assert image.notes == ("its channels have 16 bits, of which 8 are read", *([note] if note else []))
    assert image.bits == 8


def test_a_profile_for_other_channels_is_left_out() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert read_image(encoded(Image.fromarray(COLOUR), icc_profile=profile)).icc == profile
    grey = read_image(encoded(Image.fromarray(RAMP), icc_profile=profile))
    assert grey.icc is None
    assert grey.notes == ("its colour profile is for other channels than those that are read, and is left out",)


def bitmap(width: int, height: int) -> bytes:
    """The head of a BMP, which says how large it is."""
    return struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, width, height, 1, 24, *(0,) * 6)


REFUSED = {
    "empty": (b"", "it is empty"),
    "text": (b"no image", "does not begin as a readable BMP, GIF, JPEG, PNG, TIFF or WEBP"),
    "PostScript, which starts Ghostscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "does not begin"),
    "another of Pillow's formats": (encoded(Image.fromarray(RAMP), "PPM"), "does not begin"),
    "80 million pixels": (bitmap(10_000, 8_000), r"10000×8000 pixels, 1\.0 GB as three channels of float32; at most"),
    "200 million pixels": (bitmap(20_000, 10_000), r"more than 67,108,864 pixels, 0\.8 GB as three channels"),
    "a huge tile": (tiff(RAMP, bits=8, tile=2**14), "16384×16384 pixels"),
    "a cut PNG": (encoded(Image.fromarray(COLOUR))[:-100], "truncated"),
    "a cut JPEG": (encoded(Image.fromarray(COLOUR), "JPEG")[:-300], "truncated"),
    "16 bits in planes": (
        deep_tiff(np.zeros((3, 32, 40), np.uint16), planarconfig="separate"),
        "its channels of more than 8 bits are stored separately",
    ),
    "negative values": (tiff(DEEP.astype(np.int16), bits=16, sample_format=2), r"values lie in \[-32743, 32741\]"),
    "floats up to 255": (tiff(RAMP.astype(np.float32), bits=32, sample_format=3), r"\[0, 255\], and only \[0, 1\] can"),
    "floats with NaN": (tiff(np.full((4, 4), np.nan, np.float32), bits=32, sample_format=3), "nan"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_unreadable_content_says_why(content: bytes, message: str) -> None:
    with pytest.raises(UnreadableImage, match=rf"^a\.png cannot be read as an image: .*{message}"):
        read_image(content, name="a.png")


def test_suffixes_belong_to_the_formats() -> None:
    forms = Image.registered_extensions()
    assert {forms[suffix] for suffix in SUFFIXES} == set(pictures.FORMATS)


class TestPreprocess:
    preprocess = Preprocess(resize=36, crop=32)

    @pytest.mark.parametrize("value", [0, 200, 30_000, 65_535])
    @pytest.mark.parametrize("mode", ["I;16", "I"])
    def test_deep_grey_is_scaled(self, mode: str, value: int) -> None:
        picture = Image.fromarray(np.full((40, 50), value, np.uint16 if mode == "I;16" else np.int32))
        assert picture.mode == mode
        assert self.preprocess(picture).unique().tolist() == pytest.approx([round(value / 257) / 255])

    def test_floats_are_taken_for_values_in_0_and_1(self) -> None:
        assert self.preprocess(Image.new("F", (40, 40), 0.5)).unique().tolist() == pytest.approx([128 / 255])
        with pytest.raises(UnreadableImage, match=r"the picture .* \[127, 127\], and only \[0, 1\] can be scaled"):
            self.preprocess(Image.new("F", (40, 40), 127))

    @pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (MIN_SIDE - 1, 40), (9, 9 * MAX_ASPECT + 1)])
    def test_too_small_or_narrow_is_refused_before_it_is_enlarged(self, size: tuple[int, int], monkeypatch) -> None:
        monkeypatch.setattr("torchvision.transforms.v2.functional.resize", None)
        with pytest.raises(UnreadableImage, match=f"the picture cannot be read .*{size[0]}×{size[1]} pixels"):
            self.preprocess(Image.new("RGB", size))

    def test_a_refusal_says_how_much_memory_it_saves(self) -> None:
        with pytest.raises(UnreadableImage, match=r"Resized to 256 it would take 0\.39 GB"):
            Preprocess(resize=256, crop=224)(Image.new("RGB", (8, 4000)))

    @pytest.mark.parametrize("size", [(MIN_SIDE, MIN_SIDE), (MIN_SIDE * MAX_ASPECT, MIN_SIDE)])
    def test_the_smallest_and_narrowest(self, size: tuple[int, int]) -> None:
        assert self.preprocess(Image.new("RGB", size)).shape == (3, 32, 32)

    def test_only_pictures_are_taken(self) -> None:
        with pytest.raises(TypeError, match=r"a PIL image was expected, got Tensor"):
            self.preprocess(torch.zeros(3, 40, 40))

    @pytest.mark.parametrize(("resize", "crop"), [(32, 33), (32, 0), (0, 0)])
    def test_the_crop_lies_within_the_picture(self, resize: int, crop: int) -> None:
        with pytest.raises(ValueError, match=rf"crop must lie in \[1, resize={resize}\], got {crop}"):
            Preprocess(resize=resize, crop=crop)


@pytest.mark.parametrize("coloured", [True, False], ids=["coloured", "grey"])
def test_a_palette_keeps_greys_grey_and_colours_near(coloured: bool) -> None:
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    values[:32] = values[:32, :, :1]
    values = values if coloured else values[:32]
    before, after = io.BytesIO(), io.BytesIO()
    Image.fromarray(values).save(before, "PNG")
    after.write(pictures.with_palette(before.getvalue()))
    assert len(after.getvalue()) < 0.6 * len(before.getvalue())
    reduced = Image.open(after)
    assert reduced.mode == "P"
    found = np.asarray(reduced.convert("RGB")).astype(int)
    assert np.ptp(found[:32], axis=2).max() == 0
    assert abs(found - values)[:32].max() <= 3
    # The hardest case: as many colours as pixels.
    assert abs(found - values).mean() < 16
