"""Purify an image file of your own, and classify it before and after.

Usage: python examples/own_image.py [PHOTO] [--iters N] [--max-side PIXELS] [--out FILE.png]
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import torch
from torch.nn.functional import interpolate

from dipdefense import DIPConfig, DIPPurifier, classifiers
from dipdefense.files import open_rgb, read_image, write_image

package = importlib.util.find_spec("foolbox")  # its package has a sample photo
packaged = Path(str(package and package.origin)).parent / "data" / "imagenet_00_243.jpg"
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("photo", type=Path, nargs="?", default=packaged)
parser.add_argument("--iters", type=int, help="iterations (1000 on a GPU, 60 on a CPU)")
parser.add_argument(
    "--max-side", type=int, default=224, help="larger images are reduced to this; the cost grows with the pixels"
)
parser.add_argument("--out", type=Path, default=Path("out/own_image.png"))
arguments = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
config = DIPConfig.paper() if device == "cuda" else DIPConfig.compact()
iters = arguments.iters or (1000 if device == "cuda" else 60)
print(f"{iters} iterations of a network with {config.channels} channels, on {device}.")
if device == "cpu" or iters < 500:
    print("REDUCED SETTING: the paper's is 500 to 1000 iterations of 128 channels. Results here mean little.")

photo = read_image(arguments.photo)  # upright, with its depth, transparency and colour profile
scale = min(1.0, arguments.max_side / max(photo.pixels.shape[1:]))
size = [round(side * scale) for side in photo.pixels.shape[1:]]
small = interpolate(photo.pixels[None], size, mode="bicubic", antialias=True).clamp(0, 1)

purifier = DIPPurifier(iters, config=config, seed=0, progress=True)
run = purifier.reconstruct(small.to(device), budgets=(iters,))
arguments.out.parent.mkdir(parents=True, exist_ok=True)
alpha = None if photo.alpha is None else interpolate(photo.alpha[None], size)[0]
write_image(arguments.out, run.images[0, 0].cpu(), alpha=alpha, bits=photo.bits, icc=photo.icc)
print(f"Saved {arguments.out}, {size[1]}×{size[0]} pixels; the error fell to {run.losses[-1, 0]:.4f}.")

classifier = classifiers.load("efficientnet-lite0")
for stage, path in {"before": arguments.photo, "after": arguments.out}.items():
    picture = open_rgb(path.read_bytes(), name=str(path))
    confidence, index = classifier(classifier.preprocess(picture)[None]).softmax(dim=1)[0].max(dim=0)
    print(f"{stage:7} {classifier.categories[int(index)]:28} {confidence:.2f}")
print("Accuracy under attacks that do not know of the defence is defence-unaware: that is not robustness.")
