"""Figure 1 of Kattamis et al. 2019: the true class's confidence by iteration.

    python benchmarks/figure1.py
    python benchmarks/figure1.py --data IMAGENET/val --classifier resnet18 --images 20

There is a curve for each adversary and strength. Without options it uses packaged images and weights: on a GPU 20
images with the paper's network, on a CPU a reduced setting that takes minutes and that every report names. A killed run
resumes from its store by the same command; with more images, the command adds them.
"""

from __future__ import annotations

from dipdefense.paper.figure1 import reproduce

if __name__ == "__main__":
    reproduce(description=__doc__)
