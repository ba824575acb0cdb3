"""Put the defence in front of a classifier, and record one run at three budgets.

Any classifier of images in [0, 1] will do.

Usage: python examples/wrap_classifier.py [--iters N] [--images N]
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from dipdefense import DIPConfig, DIPPurifier, classifiers, datasets

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--iters", type=int, help="iterations, at least 4 (1000 on a GPU, 60 on a CPU)")
parser.add_argument("--images", type=int, default=1, help="how many packaged images to purify")
arguments = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
config = DIPConfig.paper() if device == "cuda" else DIPConfig.compact()
iters = arguments.iters or (1000 if device == "cuda" else 60)
print(f"{iters} iterations of a network with {config.channels} channels, on {device}.")
if device == "cpu" or iters < 500:
    print("REDUCED SETTING: the paper's is 500 to 1000 iterations of 128 channels. Accuracy here means nothing.")

classifier = classifiers.load("efficientnet-lite0", device=device)
packaged = datasets.packaged_images("imagenet", preprocess=classifier.preprocess)
images, labels = (part[: arguments.images].to(device) for part in (packaged.images, packaged.labels))

purifier = DIPPurifier(iters, config=config, seed=0)
defended = nn.Sequential(purifier, classifier)

# One backward pass is enough to see what an attacker gets: the purifier's gradient is the identity (BPDA).
images.requires_grad_()
logits = defended(images)
(gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, labels), images)
print(f"nn.Sequential(DIPPurifier, classifier): logits {tuple(logits.shape)}, gradient {tuple(gradient.shape)}")

budgets = (iters // 2, 3 * iters // 4, iters)
run = purifier.reconstruct(images, budgets=budgets)
with torch.no_grad():
    rows = {
        "undefended": images,
        **{f"{k} iterations": outputs for k, outputs in zip(budgets, run.images, strict=True)},
    }
    for stage, shown in rows.items():
        scores = classifier(shown).softmax(dim=1)
        for index, (score, label) in enumerate(zip(scores, labels.tolist(), strict=True)):
            name = classifier.categories[int(score.argmax())]
            print(f"image {index}  {stage:16}  {name:28}  true class {score[label]:.2f}")
print("These images are clean. Accuracy under attacks that do not know of the defence is defence-unaware accuracy:")
print("that is not robustness.")
