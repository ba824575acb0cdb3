"""Table 1 of Kattamis et al. 2019: top-1 accuracy on clean images.

    python benchmarks/table1.py
    python benchmarks/table1.py --data IMAGENET/val --classifier resnet18 --images 500 --classes 200 --seed 0 1 2

The images are classified undefended and behind each defence. An attack stands beside the clean images, because the
accuracy on those alone says nothing about a defence. A killed run resumes from its store by the same command; with more
images, the command adds them.
"""

from __future__ import annotations

from dipdefense.paper.reproduction import reproduce

if __name__ == "__main__":
    reproduce(table=1, description=__doc__)
