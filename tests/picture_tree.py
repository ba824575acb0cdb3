"""A folder of image files of every kind, for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms

from dipdefense.files import write_image

UNREADABLE = {"deep/truncated.png", "empty.png", "deep/text.jpg", "small.png"}
"""Those of the files that have no reconstruction."""


def _noise(number: int, width: int, height: int, channels: int) -> np.ndarray:
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, channels), dtype=np.uint8)
    bands = [Image.fromarray(coarse[..., band]).resize((width, height)) for band in range(channels)]
    return np.stack([np.asarray(band) for band in bands], axis=-1)


def make(folder: Path, count: int) -> set[str]:
    """Write so many small image files and return the paths of their outputs."""
    (folder / "deep" / "er").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rgb = Image.fromarray(_noise(0, 40, 33, 3))
    rgba = Image.fromarray(_noise(1, 32, 32, 4))
    deep = Image.fromarray(_noise(2, 32, 32, 1)[..., 0].astype(np.uint16) * 257)
    special = {
        "turned.jpg": (rgb, {"exif": exif}),
        "profile.png": (rgb, {"icc_profile": profile}),
        "deep/transparent.png": (rgba, {}),
        "deep/16 bits.png": (deep, {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "palette.gif": (rgb.quantize(32), {}),
        "animated.webp": (rgb, {"save_all": True, "append_images": [rgb.rotate(180)]}),
        "LOUD.PNG": (rgb, {}),
        "grey.bmp": (rgb.convert("L"), {}),
        "deep/er/naïve ε.webp": (rgb, {"lossless": True}),
        "small.png": (rgb.crop((0, 0, 8, 20)), {}),
    }
    for name, (picture, options) in special.items():
        picture.save(folder / name, **options)
    (folder / "empty.png").write_bytes(b"")
    (folder / "deep" / "text.jpg").write_text("no image")
    (folder / "deep" / "truncated.png").write_bytes((folder / "profile.png").read_bytes()[:-500])
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "readme.txt").write_text("not an image by its name")
    deep_colour = torch.from_numpy(_noise(3, 32, 32, 4).astype(np.float32)).permute(2, 0, 1) / 256
    write_image(folder / "deep" / "colour.png", deep_colour[:3], alpha=deep_colour[3:], bits=16)
    names = {*special, *UNREADABLE, "deep/colour.png"}
    for number in range(count - len(names)):
        name = f"deep/er/{number:03}.{('png', 'jpg', 'bmp')[number % 3]}"
        size = ((32, 32), (32, 32), (40, 32), (33, 35))[number % 4]
        Image.fromarray(_noise(10 + number, *size, 3)).save(folder / name)
        names.add(name)
    return {
        name if name.lower().endswith(".png") else str(Path(name).with_suffix(".png")) for name in names - UNREADABLE
    }
