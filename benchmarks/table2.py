"""Table 2 of Kattamis et al. 2019: top-1 accuracy under defence-unaware attacks, undefended and behind each defence.

    python benchmarks/table2.py
    python benchmarks/table2.py --data IMAGENET/val --classifier resnet18 --images 500 --classes 200 --seed 0 1 2

Bare, it takes packaged images and weights: on a GPU with the paper's network and budgets, on a CPU with a reduced
setting that takes minutes, that every report names, and that is too small to show the defence at work. A run that
was killed resumes from the store when it is called again; called with more images, it adds them. Outcomes are shared
with table1.py where the folder is the same.
"""

from __future__ import annotations

from dipdefense.paper.reproduction import reproduce

if __name__ == "__main__":
    reproduce(table=2, description=__doc__)
