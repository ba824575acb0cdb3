"""Purify a folder of images of any sizes; existing outputs are kept.

Usage: python examples/folder.py [FOLDER] [--out FOLDER] [--iters N] [--images N]
The command `dipdefense purify FOLDER OUT` does the same and handles more cases.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections import defaultdict
from pathlib import Path

import torch

from dipdefense import DIPConfig, DIPPurifier
from dipdefense.config import MIN_SIDE
from dipdefense.files import SUFFIXES, ImageFile, UnreadableImage, read_image, write_image
from dipdefense.seeds import derive_seed

package = importlib.util.find_spec("foolbox")  # its package has sample images
packaged = Path(str(package and package.origin)).parent / "data"
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path, nargs="?", default=packaged)
parser.add_argument("--out", type=Path, default=Path("out/folder"))
parser.add_argument("--iters", type=int, help="iterations (1000 on a GPU, 30 on a CPU)")
parser.add_argument("--images", type=int, help="how many (all on a GPU, the smallest 4 files on a CPU)")
arguments = parser.parse_args()

device, config, iters = ("cuda", DIPConfig(), 1000) if torch.cuda.is_available() else ("cpu", DIPConfig.compact(), 30)
iters = arguments.iters or iters
print(f"{iters} iterations of a network with {config.channels} channels, on {device}.")
if device == "cpu" or iters < 500:
    print("REDUCED SETTING: the paper's is 500 to 1000 iterations of 128 channels. Results here mean little.")

limit = arguments.images or (None if device == "cuda" else 4)
found = (path for path in arguments.folder.iterdir() if path.suffix.lower() in SUFFIXES)
by_size: dict[torch.Size, list[tuple[Path, ImageFile]]] = defaultdict(list)
for path in sorted(found, key=lambda path: path.stat().st_size):
    try:
        image = read_image(path)
    except UnreadableImage as error:
        print(error)
    else:
        if min(image.pixels.shape[1:]) < MIN_SIDE:
            print(f"{path.name} is smaller than {MIN_SIDE} pixels")
        elif sum(map(len, by_size.values())) != limit:
            by_size[image.pixels.shape].append((arguments.out / f"{path.stem}.png", image))
arguments.out.mkdir(parents=True, exist_ok=True)
purifier = DIPPurifier(iters, config=config, progress=True)
for size, images in by_size.items():
    todo = [(target, image) for target, image in images if not target.exists()]
    seeds = [derive_seed(0, target.name) for target, _ in todo]  # from the name, so neither order nor batch matters
    batch = torch.stack([image.pixels for _, image in todo]) if todo else torch.empty(0, *size)
    outputs = purifier.reconstruct(batch.to(device), budgets=(iters,), seed=seeds).images[0].cpu()
    for (target, image), output in zip(todo, outputs, strict=True):
        write_image(target, output, alpha=image.alpha, bits=image.bits, icc=image.icc)
    print(f"{len(todo)} of {len(images)} images of {size[2]}×{size[1]} pixels done")
print(f"See {arguments.out}. Accuracy under attacks that do not know of it is defence-unaware: not robustness.")
