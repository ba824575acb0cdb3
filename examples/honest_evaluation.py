"""Evaluate a purifier under attackers who know it.

The same call takes a defence and a classifier of your own.

Usage: python examples/honest_evaluation.py [--iters N] [--images N] [--epsilon E ...] [--out FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from dipdefense import DIPConfig, DIPPurifier, classifiers, datasets
from dipdefense.evaluation import evaluate

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--iters", type=int, help="iterations (1000 on a GPU, 20 on a CPU)")
parser.add_argument("--images", type=int, default=1, help="how many packaged images to attack")
parser.add_argument("--epsilon", type=float, nargs="+", default=[8.0], help="attack strengths in units of 1/255")
parser.add_argument("--out", type=Path, default=Path("out/honest-evaluation"), help="a killed run resumes from here")
arguments = parser.parse_args()

cuda = torch.cuda.is_available()
device, config = ("cuda", DIPConfig.paper()) if cuda else ("cpu", DIPConfig.compact())
iters = arguments.iters or (1000 if cuda else 20)
if not cuda:
    print(f"REDUCED SETTING: 32 channels instead of the paper's 128, and {iters} iterations instead of 1000.")

classifier = classifiers.load("efficientnet-lite0", device=device)
packaged = datasets.packaged_images("imagenet", preprocess=classifier.preprocess)
images, labels = packaged.images.to(device), packaged.labels.to(device)
right = (classifier(images).argmax(dim=1) == labels).nonzero().flatten()[: arguments.images]

# Any module from images to images can be the defence. This one, without a seed, is random at every call.
defence = DIPPurifier(iters, config=config)
report = evaluate(
    defence, classifier, images[right], labels[right], level="quick", epsilon=arguments.epsilon, folder=arguments.out
)
print(report)
(arguments.out / "report.json").write_text(report.to_json())
report.plot().savefig(arguments.out / "report.png", dpi=150)
print(f"Saved {arguments.out}/report.json and report.png. Real attackers are stronger: this is not robustness.")
