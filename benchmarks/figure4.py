"""Figure 4 of Kattamis et al. 2019: one image's saliency by every method.

    python benchmarks/figure4.py
    python benchmarks/figure4.py --data IMAGENET/val --classifier resnet18 --image n02510455/ILSVRC2012_val_1.JPEG

The paper's MIG-SG is one of the methods. Without options it uses a packaged clean image and packaged weights, and takes
about a minute on a CPU. The paper gives neither the number of steps and samples nor the noise. Writes figure4.png and
figure4.json into --out.
"""

from __future__ import annotations

from dipdefense.paper.figure4 import reproduce

if __name__ == "__main__":
    reproduce(description=__doc__)
