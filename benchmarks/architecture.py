"""Section 6 of Kattamis et al. 2019: how sensitive the defence is to its network, one change at a time.

    python benchmarks/architecture.py
    python benchmarks/architecture.py --data IMAGENET/val --classifier resnet18 --images 100 --config paper
    python benchmarks/architecture.py --data cifar10-images.zip --classifier cifar10-cnn --weights cifar10-cnn.pt \
        --config architecture-1 --images 50 --batch 10 --budgets 50 100 150 200 300 500 750 1000

Every variant is fitted to the same images, clean and under FGSM (defence-unaware), and held against the original
network: at the budget where its confidence under attack peaks, and at fixed ones. Bare, it takes packaged images and
weights: on a GPU with all variants, on a CPU with three networks and a reduced setting that takes minutes, that every
report names, and that is too small to decide anything. A run that was killed resumes from the store when it is called
again; called with more images or variants, it adds them.
"""

from __future__ import annotations

from dipdefense.paper.reproduction import reproduce_architecture

if __name__ == "__main__":
    reproduce_architecture(description=__doc__)
