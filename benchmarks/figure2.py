"""Figure 2 of Kattamis et al. 2019: an image's reconstructions by iteration.

    python benchmarks/figure2.py
    python benchmarks/figure2.py --config paper --budgets 100 200 300 400 2000 4000 --steps 20 --samples 10
    python benchmarks/figure2.py --data IMAGENET/val --classifier resnet18 --image n03041632/ILSVRC2012_val_1.JPEG

Each reconstruction has its MIG-SG saliency and the true class's confidence. Without options it uses a packaged image
and packaged weights. On a CPU the setting is reduced, takes minutes, and is named in the picture. The paper does not
say which attack its figure shows, so --attack takes any: bi-10 (the default), fgsm-5, clean and so on. A killed run
starts again. Writes figure2.png and figure2.json into --out.
"""

from __future__ import annotations

from dipdefense.paper.figure2 import reproduce

if __name__ == "__main__":
    reproduce(description=__doc__)
