"""Table 1 of Kattamis et al. 2019: top-1 accuracy on clean images, undefended and behind each defence.

    python benchmarks/table1.py
    python benchmarks/table1.py --data IMAGENET/val --classifier resnet18 --images 500 --classes 200 --seed 0 1 2

An attack stands beside the clean images, because a defence's accuracy on those alone says nothing. A run that was
killed resumes from the store when it is called again; called with more images, it adds them.
"""

from __future__ import annotations

from dipdefense.paper.reproduction import reproduce

if __name__ == "__main__":
    reproduce(table=1, description=__doc__)
