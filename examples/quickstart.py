"""Attack packaged images, defend a real classifier, and look at the result.

python examples/quickstart.py                    # writes out/quickstart.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from dipdefense import DIPConfig, DIPPurifier, classifiers, datasets
from dipdefense.attacks import fgsm

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--images", type=int, default=2, help="how many packaged images to attack")
parser.add_argument("--budgets", type=int, nargs="+", help="iterations at which to record outputs")
parser.add_argument("--epsilon", type=int, default=5, help="attack strength in units of 1/255")
parser.add_argument("--out", type=Path, default=Path("out/quickstart.png"), help="where to save the picture")
arguments = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook's arguments are its kernel's

if torch.cuda.is_available():
    device, config, network = "cuda", DIPConfig.paper(), "the paper's network (5 scales, 128 channels)"
    budgets = arguments.budgets or [500, 750, 1000]
else:
    network = "REDUCED SETTING: a network of 32 channels, not the paper's 128"
    device, config = "cpu", DIPConfig.compact()
    budgets = arguments.budgets or [250, 500, 750]
    print("No CUDA device: the paper's network takes about five minutes an image on two cores.")
print(f"Running {network}, to {budgets[-1]} iterations, on {device}.")

classifier = classifiers.load("efficientnet-lite0", device=device)
packaged = datasets.packaged_images("imagenet", preprocess=classifier.preprocess)
candidates, truth = packaged.images.to(device), packaged.labels.to(device)
right = (classifier(candidates).argmax(dim=1) == truth).nonzero().flatten()[: arguments.images]
images, labels = candidates[right], truth[right]

adversarial = fgsm(classifier, images, labels, epsilon=arguments.epsilon)
run = DIPPurifier(budgets[-1], config=config, seed=0, progress=True).reconstruct(adversarial, budgets=budgets)

stages = {"original": images, f"FGSM, ε = {arguments.epsilon}/255": adversarial}
stages |= {f"{budget} iterations": output for budget, output in zip(budgets, run.images, strict=True)}
size = (2.6 * len(stages), 3.0 * len(images) + 0.3)
figure, axes = plt.subplots(len(images), len(stages), figsize=size, squeeze=False, layout="constrained")
for column, (stage, shown) in enumerate(stages.items()):
    with torch.no_grad():
        confidence, predicted = classifier(shown).softmax(dim=1).max(dim=1)
    for row, axis in enumerate(axes[:, column]):
        name, correct = classifier.categories[int(predicted[row])], bool(predicted[row] == labels[row])
        print(f"image {row}  {stage:20}  {name:28} {confidence[row]:.2f}  {'right' if correct else 'wrong'}")
        axis.imshow(shown[row].permute(1, 2, 0).cpu().clamp(0, 1))
        axis.set_title(f"{stage}\n{name} ({confidence[row]:.2f})", fontsize=9, color="black" if correct else "crimson")
        axis.axis("off")
arguments.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(arguments.out, dpi=110)
print(f"Saved {arguments.out}. The attack did not know of the defence: defence-unaware accuracy is not robustness.")
