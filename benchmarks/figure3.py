"""Figure 3 of Kattamis et al. 2019: robust and non-robust images of CIFAR-10.

    python benchmarks/figure3.py
    python benchmarks/figure3.py --data cifar10-images.zip --images 100 --iterations 1000 3000
    python benchmarks/figure3.py --data cifar10-images.zip --robust-set robust_CIFAR --non-robust-set non_robust_CIFAR

Plots the true class's confidence against the iterations of the DIP. Without options it makes both sets by the method of
Ilyas et al. 2019, from packaged images and the networks in benchmarks/weights that benchmarks/train_cifar10.py trained;
on a CPU in minutes, with fewer steps and iterations. The released sets are read from folders. A killed run resumes from
its store by the same command; with more images, the command adds them. Writes figure3.md, .csv, .png and the records
into --out.
"""

from __future__ import annotations

from pathlib import Path

from dipdefense.paper.figure3 import reproduce

if __name__ == "__main__":
    reproduce(description=__doc__, weights=Path(__file__).parent / "weights")
