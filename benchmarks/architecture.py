"""Section 6 of Kattamis et al. 2019: the defence's sensitivity to its network.

    python benchmarks/architecture.py
    python benchmarks/architecture.py --data IMAGENET/val --classifier resnet18 --images 100 --config paper
    python benchmarks/architecture.py --data cifar10-images.zip --classifier cifar10-cnn --weights cifar10-cnn.pt \
        --config architecture-1 --images 50 --batch 10 --budgets 50 100 150 200 300 500 750 1000

Every variant is one change of the network. It is fitted to the same images, clean and under FGSM (defence-unaware), and
compared with the original network at fixed budgets and at the budget where its confidence under attack peaks. Without
options it uses packaged images and weights: on a GPU with all variants, on a CPU with three networks in minutes, at a
reduced setting that every report names and that is too small to decide anything. A killed run resumes from its store by
the same command; with more images or variants, the command adds them.
"""

from __future__ import annotations

from dipdefense.paper.reproduction import reproduce_architecture

if __name__ == "__main__":
    reproduce_architecture(description=__doc__)
