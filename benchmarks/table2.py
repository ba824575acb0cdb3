"""Table 2 of Kattamis et al. 2019: top-1 accuracy under defence-unaware attacks.

    python benchmarks/table2.py
    python benchmarks/table2.py --data IMAGENET/val --classifier resnet18 --images 500 --classes 200 --seed 0 1 2

The images are classified undefended and behind each defence. Without options it uses packaged images and weights: on a
GPU with the paper's network and budgets, on a CPU in minutes at a reduced setting that every report names and that is
too small to show the defence at work. A killed run resumes from its store by the same command; with more images, the
command adds them. In the same folder it shares outcomes with table1.py.
"""

from __future__ import annotations

from dipdefense.paper.reproduction import reproduce

if __name__ == "__main__":
    reproduce(table=2, description=__doc__)
