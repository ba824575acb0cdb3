"""Figure 4 of Kattamis et al. 2019: one image's saliency by every method, the paper's MIG-SG among them.

    python benchmarks/figure4.py
    python benchmarks/figure4.py --data IMAGENET/val --classifier resnet18 --image n02510455/ILSVRC2012_val_1.JPEG

Bare, it takes a packaged image and packaged weights, clean, and about a minute on a CPU. The paper gives neither the
steps nor the samples, nor the noise. Writes figure4.png and figure4.json into --out.
"""

from __future__ import annotations

from dipdefense.paper.figure4 import reproduce

if __name__ == "__main__":
    reproduce(description=__doc__)
