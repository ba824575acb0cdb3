"""Figure 3 of Kattamis et al. 2019: confidence of robust and non-robust CIFAR-10 images against DIP iterations.

    python benchmarks/figure3.py
    python benchmarks/figure3.py --data cifar10-images.zip --images 100 --iterations 1000 3000
    python benchmarks/figure3.py --data cifar10-images.zip --robust-set robust_CIFAR --non-robust-set non_robust_CIFAR

Bare, it takes packaged images and the networks in benchmarks/weights, which benchmarks/train_cifar10.py trained, and
makes both sets from them as Ilyas et al. 2019 do; on a CPU with fewer steps and iterations, in minutes. Their released
sets are read from folders. A run that was killed resumes from the store when it is called again; called with more
images, it adds them. Writes figure3.md, .csv, .png and the records into --out.
"""

from __future__ import annotations

from pathlib import Path

from dipdefense.paper.figure3 import reproduce

if __name__ == "__main__":
    reproduce(description=__doc__, weights=Path(__file__).parent / "weights")
