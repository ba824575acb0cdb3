"""Figure 1 of Kattamis et al. 2019: the true class's confidence against the iterations, by adversary and strength.

    python benchmarks/figure1.py
    python benchmarks/figure1.py --data IMAGENET/val --classifier resnet18 --images 20

Bare, it takes packaged images and weights: on a GPU 20 images with the paper's network, on a CPU a reduced setting that
takes minutes and that every report names. A run that was killed resumes from the store when it is called again; called
with more images, it adds them.
"""

from __future__ import annotations

from dipdefense.paper.figure1 import reproduce

if __name__ == "__main__":
    reproduce(description=__doc__)
